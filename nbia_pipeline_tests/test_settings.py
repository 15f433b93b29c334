from __future__ import annotations

import fnmatch
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dagster.components.testing.utils import component_defs
from hypothesis import given
from hypothesis import strategies as st

import nbia_pipeline
from nbia_pipeline.archive import LoginRefused
from nbia_pipeline.component import NbiaComponent
from nbia_pipeline.defs.resources import NbiaResource
from nbia_pipeline.errors import error_text
from nbia_pipeline.lake import LakeError
from nbia_pipeline.settings import Settings, SettingsError, split_names
from nbia_pipeline.text import is_glob, matching, unmatched

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def read(**variables: str) -> Settings:
    return Settings.from_env(variables)


# --- the selection of series


def test_a_selection_is_read_from_json_and_its_manifest_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = '{"LIDC-IDRI": {"modalities": ["CT", "SEG"]}, "*": {"manifest": "some.tcia", "cart": "Ours"}}'
    assert read(NBIA_SELECT=text).select == {
        "LIDC-IDRI": {"modalities": ["CT", "SEG"]},
        "*": {"manifest": str(tmp_path / "some.tcia"), "cart": "Ours"},
    }
    assert list(read(NBIA_SELECT=text).select) == ["LIDC-IDRI", "*"], "the first one that matches applies"
    assert read().select == {}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("CT", "NBIA_SELECT is not JSON (Expecting value"),
        ('["CT"]', "NBIA_SELECT is ['CT']: set it to a mapping, such as {"),
        ('{"A": ["CT"]}', "NBIA_SELECT has 'A', which is ['CT']: set it to a mapping, such as {"),
        (
            '{"A": {"modalites": ["CT"]}}',
            "'modalites' of 'A' in NBIA_SELECT is not a field of a selection: did you mean m",
        ),
        (
            '{"A": {"colour": ["red"]}}',
            "is not a field of a selection: use modalities, body_parts, patients, series, man",
        ),
        ('{"A": {"modalities": "CT"}}', "'modalities' of 'A' in NBIA_SELECT is 'CT': set it to a list of one or more"),
        (
            '{"A": {"patients": [1]}}',
            "'patients' of 'A' in NBIA_SELECT is [1]: set it to a list of one or more strings",
        ),
        ('{"A": {"series": []}}', "'series' of 'A' in NBIA_SELECT is []: set it to a list of one or more strings, or"),
        ('{"A": {"cart": " "}}', "'cart' of 'A' in NBIA_SELECT is ' ': set it to a string, or leave it out"),
        ('{"B": {}}', "NBIA_SELECT names 'B', but NBIA_COLLECTIONS (A*) leaves it out: add it there too"),
    ],
)
def test_a_wrong_selection_is_told_as_it_was_written(text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as error:
        read(NBIA_SELECT=text, NBIA_COLLECTIONS="A*")
    assert problem in str(error.value)


def test_v4_has_no_carts_to_select_by() -> None:
    with pytest.raises(SettingsError, match=r"'cart' of 'A' in NBIA_SELECT needs NBIA_API v2"):
        read(NBIA_SELECT='{"A": {"cart": "Ours"}}', NBIA_API="v4")


# --- defaults


def test_without_variables_the_embedded_archive_is_mirrored_whole() -> None:
    settings = read()
    assert (settings.archive, settings.api, settings.username, settings.password) == (
        "embedded",
        "v2",
        "nbia_guest",
        "",
    )
    assert (settings.collections, settings.images, settings.ca_bundle) == (("*",), ("*",), None)
    assert settings.lake == str(Path("lake").absolute())


def test_images_of_a_remote_archive_are_not_mirrored_unless_named() -> None:
    assert read(NBIA_ARCHIVE="tcia").images == ()


def test_the_environment_of_the_process_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBIA_ARCHIVE", "nlst")
    assert Settings.from_env().archive == "nlst"


# --- each variable


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("NBIA_ARCHIVE", "embedded", "archive", "embedded"),
        ("NBIA_ARCHIVE", "tcia", "archive", "tcia"),
        ("NBIA_ARCHIVE", "nlst", "archive", "nlst"),
        ("NBIA_ARCHIVE", "http://[::1]:8080/x/nbia-api", "archive", "http://[::1]:8080/x/nbia-api"),
        ("NBIA_API", "v4", "api", "v4"),
        ("NBIA_API", "v2", "api", "v2"),
        ("NBIA_LAKE", "/data/lake", "lake", "/data/lake"),
        ("NBIA_LAKE", "s3://bucket/lake", "lake", "s3://bucket/lake"),
        ("NBIA_COLLECTIONS", "RIDER Lung CT, TCGA-*,", "collections", ("RIDER Lung CT", "TCGA-*")),
        ("NBIA_IMAGES", "LIDC-IDRI ,QIN*", "images", ("LIDC-IDRI", "QIN*")),
        ("NBIA_HEADERS", "LIDC-IDRI,QIN*", "headers", ("LIDC-IDRI", "QIN*")),
        ("NBIA_METADATA", "single", "metadata", "single"),
        ("NBIA_METADATA", "bulk", "metadata", "bulk"),
        ("NBIA_POLL_SECONDS", " 600", "poll_seconds", 600),
        ("NBIA_CATALOGUE_CRON", "@weekly", "catalogue_cron", "@weekly"),
        ("NBIA_RECONCILE_CRON", "30 4 * * SUN", "reconcile_cron", "30 4 * * SUN"),
    ],
)
def test_a_variable_sets_its_field(variable: str, text: str, field: str, value: object) -> None:
    assert getattr(read(**{variable: text}), field) == value


def test_an_account_is_taken_from_two_variables() -> None:
    settings = read(NBIA_USERNAME="me", NBIA_PASSWORD=" p@ss ")
    assert (settings.username, settings.password) == ("me", " p@ss ")


def test_a_ca_bundle_is_taken_if_it_is_there(tmp_path: Path) -> None:
    bundle = tmp_path / "authority.pem"
    bundle.touch()
    assert read(NBIA_CA_BUNDLE=str(bundle)).ca_bundle == str(bundle)


@pytest.mark.parametrize(
    "variable",
    [
        "NBIA_ARCHIVE",
        "NBIA_API",
        "NBIA_USERNAME",
        "NBIA_PASSWORD",
        "NBIA_LAKE",
        "NBIA_COLLECTIONS",
        "NBIA_CA_BUNDLE",
        "NBIA_METADATA",
        "NBIA_POLL_SECONDS",
        "NBIA_CATALOGUE_CRON",
        "NBIA_RECONCILE_CRON",
    ],
)
def test_an_empty_variable_takes_its_default(variable: str) -> None:
    assert read(**{variable: ""}) == read()


def test_empty_images_are_no_images_even_of_the_embedded_archive() -> None:
    assert read(NBIA_IMAGES="").images == ()
    assert read().images == ("*",)


def test_a_relative_lake_is_made_absolute_and_home_is_expanded() -> None:
    assert read(NBIA_LAKE="~/x").lake == str(Path.home() / "x")
    assert read(NBIA_LAKE="x/y").lake == str(Path.cwd() / "x" / "y")


def test_the_password_is_not_printed() -> None:
    settings = read(NBIA_USERNAME="me", NBIA_PASSWORD="hunter-2")
    assert "hunter-2" not in repr(settings) + str(settings) + f"{settings!r:>5}"


# --- what is refused


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"NBIA_ARCHIVE": "TCIA"}, "NBIA_ARCHIVE is 'TCIA': set it to embedded, tcia, nlst, or to a base URL"),
        ({"NBIA_ARCHIVE": "https://x.org"}, "NBIA_ARCHIVE is 'https://x.org'"),
        ({"NBIA_ARCHIVE": "https://x.org/nbia-api/"}, "a base URL that ends in /nbia-api"),
        ({"NBIA_ARCHIVE": "https://x.org/nbia-api?a=/nbia-api"}, "a base URL that ends in /nbia-api"),
        ({"NBIA_ARCHIVE": "https://x.org/nbia-api#/nbia-api"}, "a base URL that ends in /nbia-api"),
        ({"NBIA_ARCHIVE": "https://x org/nbia-api"}, "a base URL that ends in /nbia-api"),
        ({"NBIA_ARCHIVE": "https://x\n.org/nbia-api"}, "a base URL that ends in /nbia-api"),
        ({"NBIA_ARCHIVE": "https://x.org\\nbia/nbia-api"}, "a base URL that ends in /nbia-api"),
        ({"NBIA_ARCHIVE": "ftp://x.org/nbia-api"}, "NBIA_ARCHIVE is"),
        ({"NBIA_ARCHIVE": "https:///nbia-api"}, "NBIA_ARCHIVE is"),
        ({"NBIA_ARCHIVE": "https://x.org:99999/nbia-api"}, "NBIA_ARCHIVE is"),
        ({"NBIA_ARCHIVE": "https://[::1/nbia-api"}, "NBIA_ARCHIVE is"),
        ({"NBIA_API": "v3"}, "NBIA_API is 'v3': set it to v2 or v4"),
        ({"NBIA_METADATA": "both"}, "NBIA_METADATA is 'both': set it to auto, bulk, single"),
        ({"NBIA_METADATA": "Single"}, "NBIA_METADATA is 'Single'"),
        ({"NBIA_PASSWORD": "secret-1"}, "NBIA_PASSWORD is set, but NBIA_USERNAME is the guest"),
        ({"NBIA_USERNAME": "me"}, "NBIA_USERNAME is 'me', but NBIA_PASSWORD is empty"),
        ({"NBIA_LAKE": "  "}, "NBIA_LAKE is empty"),
        ({"NBIA_COLLECTIONS": " , "}, "NBIA_COLLECTIONS is empty"),
        ({"NBIA_POLL_SECONDS": "hourly"}, "NBIA_POLL_SECONDS is 'hourly': set it to a whole number"),
        ({"NBIA_POLL_SECONDS": "-60"}, "NBIA_POLL_SECONDS is -60: set it to 60 or more"),
        ({"NBIA_POLL_SECONDS": "59"}, "NBIA_POLL_SECONDS is 59: set it to 60 or more"),
        ({"NBIA_CA_BUNDLE": "/no/such/file"}, "NBIA_CA_BUNDLE is '/no/such/file': there is no such file"),
        (
            {"NBIA_COLLECTIONS": "A,B*", "NBIA_IMAGES": "C"},
            "NBIA_IMAGES names 'C', but NBIA_COLLECTIONS (A, B*) leaves it out",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(variables: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(text)):
        read(**variables)


@pytest.mark.parametrize(
    "archive",
    [
        "https://me:hunter-2@x.org/nbia-api",
        "https://me@x.org/nbia-api",
        "me:hunter-2@x.org/nbia-api",
        "https://me:hunter-2@[::1/nbia-api",
        "https://me:hunter-2@x.org",
    ],
)
def test_an_account_in_the_url_is_refused_and_not_shown(archive: str) -> None:
    with pytest.raises(SettingsError, match=r"NBIA_ARCHIVE contains an account.*NBIA_USERNAME") as caught:
        read(NBIA_ARCHIVE=archive)
    assert "hunter-2" not in str(caught.value)


def test_a_refusal_does_not_show_the_password() -> None:
    with pytest.raises(SettingsError) as caught:
        read(NBIA_PASSWORD="hunter-2")
    assert "hunter-2" not in str(caught.value)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("NBIA_COLLECTION", "NBIA_COLLECTIONS"),
        ("NBIA_IMAGE", "NBIA_IMAGES"),
        ("NBIA_PASWORD", "NBIA_PASSWORD"),
        ("NBIA_USER_NAME", "NBIA_USERNAME"),
        ("NBIA_CABUNDLE", "NBIA_CA_BUNDLE"),
        ("NBIA_RECONCILIATION_CRON", "NBIA_RECONCILE_CRON"),
    ],
)
def test_a_misspelt_variable_is_refused_by_name(misspelt: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=rf"{misspelt} is not a variable .* did you mean {meant}\?"):
        read(**{misspelt: "x"})


def test_variables_of_others_are_left_alone() -> None:
    assert read(NBIA_WEATHER="fine", COLLECTIONS="x", HTTPS_PROXY="http://p:1") == read()


@pytest.mark.parametrize("images", ["A", "B1", "*", "Z*", ""])
def test_images_of_kept_collections_and_globs_are_accepted(images: str) -> None:
    assert read(NBIA_COLLECTIONS="A,B*", NBIA_IMAGES=images).images == split_names(images)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"api": "v5"}, "{api} is 'v5': set it to v2 or v4"),
    ({"archive": "https://x.org"}, "{archive} is 'https://x.org': set it to embedded, tcia, nlst, or to a base URL"),
    (
        {"archive": "https://me:p@x.org/nbia-api"},
        "{archive} contains an account: put it into {username} and {password}",
    ),
    ({"username": "me"}, "{username} is 'me', but {password} is empty"),
    ({"lake": " "}, "{lake} is empty"),
    ({"collections": " , "}, "{collections} is empty"),
    ({"collections": "A,B*", "images": "C"}, "{images} names 'C', but {collections} (A, B*) leaves it out"),
    ({"collections": "A,B*", "headers": "B1,C"}, "{headers} names 'C', but {collections} (A, B*) leaves it out"),
    ({"ca_bundle": "/no/such"}, "{ca_bundle} is '/no/such': there is no such file"),
    ({"poll_seconds": "59"}, "{poll_seconds} is 59: set it to 60 or more"),
    ({"poll_seconds": "hourly"}, "{poll_seconds} is 'hourly': set it to a whole number"),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG)
def test_an_error_names_what_was_written(given: dict[str, Any], sentence: str) -> None:
    variables = {name: f"NBIA_{name.upper()}" for name in Settings.model_fields}
    with pytest.raises(SettingsError, match="^" + re.escape(sentence.format(**variables))):
        read(**{variables[name]: text for name, text in given.items()})
    lists = {name: split_names(text) for name, text in given.items() if name in ("collections", "images", "headers")}
    of_python = re.escape(sentence.format(**{name: name for name in variables}))
    with pytest.raises(SettingsError, match="^" + of_python):
        Settings(**{**given, **lists})
    of_yaml = re.escape(sentence.format(**{name: name for name in variables} | {"password": "password_env"}))
    with pytest.raises(SettingsError, match="^" + of_yaml):
        component_defs(component=NbiaComponent(**{**given, **lists}))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"archives": "tcia"}, "archives is not a setting: did you mean archive?"),
        ({"xyz": 1}, "xyz is not a setting"),
        ({"api": 2}, "api is 2: set it to a string"),
        ({"collections": "A"}, "collections is 'A': set it to a list of names or globs"),
        ({"poll_seconds": 61.5}, "poll_seconds is 61.5: set it to a whole number"),
        ({"password": 12345}, "password is not a string: set it to a string"),
    ],
)
def test_a_value_of_a_wrong_type_is_a_sentence_of_ours(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError, match="^" + re.escape(sentence)) as caught:
        Settings(**given)
    assert "12345" not in str(caught.value)


def test_the_resource_checks_its_fields() -> None:
    with (
        pytest.raises(SettingsError, match=r"^api is 'v5'"),
        NbiaResource(archive="tcia", api="v5").client(),
    ):
        pass


# --- errors of the library


def library_error(text: str, *arguments: str) -> Exception:
    error = LoginRefused(text, status=401)
    error.arguments = arguments  # type: ignore[attr-defined,unused-ignore]
    return error


def test_the_variables_of_the_arguments_are_appended_before_the_call() -> None:
    error = library_error("check username and password", "username", "password")
    assert error_text(error) == "check username and password (NBIA_USERNAME, NBIA_PASSWORD) [status 401]"
    assert error_text(library_error("check base_url", "base_url")) == "check base_url (NBIA_ARCHIVE) [status 401]"


def test_an_argument_that_has_the_name_of_the_field_needs_no_other() -> None:
    error = library_error("check username and base_url", "username", "base_url")
    assert error_text(error, Settings().name_of) == "check username and base_url (archive) [status 401]"


def test_other_errors_keep_their_texts() -> None:
    assert error_text(library_error("give it more time", "read_timeout")) == "give it more time [status 401]"
    assert error_text(LakeError("no room")) == "no room"


# --- the face of the package


def test_the_package_imports_nothing_until_it_is_asked() -> None:
    code = "import sys, nbia_pipeline; print(sorted(m for m in sys.modules if m.split('.')[0] in "
    code += "('dagster', 'pyarrow', 'pydantic', 'requests', 'numpy') or m.startswith('nbia_pipeline')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['nbia_pipeline', 'nbia_pipeline._version']"


def test_the_names_of_the_package_are_there() -> None:
    for name in nbia_pipeline.__all__:
        if name != "Mirror" or importlib.util.find_spec("nbia_pipeline.mirror.engine"):
            assert getattr(nbia_pipeline, name) is not None
    assert set(nbia_pipeline.__all__) <= set(dir(nbia_pipeline))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = nbia_pipeline.Nothing


@pytest.mark.parametrize("words", [["--help"], ["--version"], []])
def test_the_help_of_the_command_imports_nothing_that_is_slow(words: list[str]) -> None:
    code = f"""
import sys
from nbia_pipeline.cli.main import COMMANDS, main
main({words!r})
slow = {{"dagster", "pyarrow", "pydantic", "requests", "numpy"}}
print(sorted({{m.split(".")[0] for m in sys.modules}} & slow), [m for m in COMMANDS.values() if m[0] in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] []"


@pytest.mark.parametrize("command", ["plan", "verify", "prune", "released", "archive", "dev", "run", "runs"])
def test_no_help_of_a_command_waits_for_dagster(command: str) -> None:
    code = f"import sys, nbia_pipeline.cli.{command}; print('dagster' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- names and globs


@pytest.mark.parametrize(
    ("images", "collection", "mirrored"),
    [("A*", "A1", True), ("A*", "a1", False), ("A", "A1", False), ("", "A", False), ("A[1],B", "A[1]", True)],
)
def test_images_are_mirrored_by_name_or_glob(images: str, collection: str, mirrored: bool) -> None:
    assert read(NBIA_IMAGES=images).mirrors_images_of(collection) is mirrored


@pytest.mark.parametrize(
    ("headers", "read_of"),
    [(None, ["A1", "B"]), ("", []), ("A*", ["A1"]), ("C", ["C"]), ("*", ["A1", "B", "C"])],
)
def test_headers_are_read_where_images_are_mirrored_unless_others_are_named(
    headers: str | None, read_of: list[str]
) -> None:
    settings = read(NBIA_IMAGES="A*,B", **({} if headers is None else {"NBIA_HEADERS": headers}))
    assert [c for c in ("A1", "B", "C") if settings.reads_headers_of(c)] == read_of
    assert settings.reads_headers is (headers != "")


@given(st.lists(NAMES.filter(lambda n: "," not in n and n.strip() == n)), st.sampled_from([",", " , ", ",,", ",\t"]))
def test_joined_names_are_split_into_the_same_names(names: list[str], comma: str) -> None:
    assert split_names(comma.join(names)) == tuple(names)


@given(st.text())
def test_split_names_have_no_blanks_around_them_and_no_commas(text: str) -> None:
    for name in split_names(text):
        assert name
        assert name == name.strip()
        assert "," not in name


@given(st.lists(NAMES))
def test_every_name_matches_itself_and_the_star(names: list[str]) -> None:
    assert matching(names, names) == names
    assert matching(["*"], names) == names
    assert matching([], names) == []


@given(st.lists(NAMES, max_size=5), st.lists(NAMES))
def test_matches_are_a_part_of_the_names_in_their_order(patterns: list[str], names: list[str]) -> None:
    found = matching(patterns, names)
    assert found == [n for n in names if any(n == p or fnmatch.fnmatchcase(n, p) for p in patterns)]
    assert {p for p in patterns if matching([p], names)}.isdisjoint(unmatched(patterns, names))


def test_an_unmatched_pattern_comes_with_what_looks_like_it() -> None:
    known = ["LIDC-IDRI", "RIDER Lung CT", "TCGA-LUAD"]
    assert unmatched(["lidc-idri", "Rider Lung", "TCGA-*", "TCGA-LUAD", "zzz"], known) == {
        "lidc-idri": ["LIDC-IDRI"],
        "Rider Lung": ["RIDER Lung CT"],
        "zzz": [],
    }


@pytest.mark.parametrize(("name", "glob"), [("A*", True), ("A?", True), ("A[1]", True), ("A b-c.d_(e)", False)])
def test_a_glob_is_told_from_a_name(name: str, glob: bool) -> None:
    assert is_glob(name) is glob


def test_a_run_imports_no_pandas_and_pyarrow_still_finds_it() -> None:
    code = """if True:
        import sys
        from nbia_pipeline.cli.run import _do_without_pandas
        _do_without_pandas()
        import nbia_pipeline.defs.main_job
        import pyarrow as pa
        pa.array([1, 2])
        print("pandas" in sys.modules, len(pa.table({"a": [1, 2]}).to_pandas()))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False 2\n"
