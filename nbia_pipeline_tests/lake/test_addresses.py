"""Where a lake is: written where its address says, or refused in a sentence by settings and lake alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nbia_pipeline.address import lake_address, without_secrets
from nbia_pipeline.errors import error_text
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import FORMAT_FILE
from nbia_pipeline.settings import Settings, SettingsError

NAMES = ["a::b", "simplecache::c", "a%20b", "a%2Fb", "s3:bucket:x", "x:y", "Ж ü", "a b ", "#a?b=c", "~", "...", "*[1]"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["plain", "with a slash", "file URI"])
def test_a_directory_is_taken_literally(name: str, form: str, tmp_path: Path) -> None:
    text = {
        "plain": f"{tmp_path}/{name}",
        "with a slash": f"{tmp_path}/{name}//",
        "file URI": f"file://{tmp_path}/{name}",
    }
    if form == "file URI" and ("::" in name or name != name.strip()):
        return  # a chain of file systems, and blanks that are no part of a URI
    settings = Settings.from_env({"NBIA_LAKE": text[form]})
    assert settings.lake == f"{tmp_path}/{name}"
    for address in (settings.lake, text[form]):
        lake = Lake(address)
        lake.check_writable()
        lake.put_bytes("images/a.dcm", b"1")
        assert lake.sizes("images") == {"images/a.dcm": 1}
        assert lake.names_in("images") == ["a.dcm"]
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert {p.name for p in (tmp_path / name).iterdir()} == {FORMAT_FILE, ".staging", "images"}


@pytest.mark.parametrize("text", ["x", "./x", "./x/", "x/.", "./s3:/bucket", "~/x"])
def test_a_relative_directory_is_made_absolute(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = str(tmp_path / text.removeprefix("~/"))
    assert Settings(lake=text).lake == Lake(text).uri == expected
    Lake(text).put_bytes("a", b"")
    assert Path(expected, "a").is_file()


@pytest.mark.parametrize("text", ["s3://bucket", "s3://bucket/a lake%20/", "memory://", "gs://b/l", " s3://bucket/l\n"])
def test_a_uri_stays_as_it_is(text: str) -> None:
    assert Settings(lake=text).lake == text.strip()


WRONG = [
    ("", "is empty: set it to a directory or a URI such as s3://bucket/lake"),
    (" \t", "is empty: set it to"),
    ("s3:/bucket", "is 's3:/bucket': a URI has ://, like s3://bucket; for a directory of that name write ./s3:/bucket"),
    ("s3:/bucket/lake", "is 's3:/bucket/lake': a URI has ://, like s3://bucket/lake;"),
    ("S3:bucket", "is 'S3:bucket': a URI has ://, like S3://bucket;"),
    ("gs:", "is 'gs:': a URI has ://, like gs://bucket/lake;"),
    ("file:/data/lake", "is 'file:/data/lake': a URI has ://, like file:///data/lake;"),
    ("https:/x/y", "is 'https:/x/y': a URI has ://"),
    ("s3://", "is 's3://', which names no bucket: set it to a URI such as s3://bucket/lake"),
    ("s3:///bucket/lake", "is 's3:///bucket/lake', which names no bucket"),
    ("abfs:///", "is 'abfs:///', which names no bucket"),
    ("file://data/lake", "is 'file://data/lake': a file URI has three slashes, like file:///data/lake"),
    ("C:\\lake", "is 'C:\\\\lake', a path of Windows: set it to a directory or"),
    ("d:/lake", "is 'd:/lake', a path of Windows"),
    ("\\\\server\\lake", "is '\\\\\\\\server\\\\lake', a path of Windows"),
    ("simplecache::s3://bucket/lake", "is 'simplecache::s3://bucket/lake': a URI with :: is a chain"),
    ("s3://bucket/a::b", "is 's3://bucket/a::b': a URI with :: is a chain of file systems"),
    ("zip://a.zip::file:///x", "is 'zip://a.zip::file:///x': a URI with :: is a chain"),
    ("~nobody-of-that-name/lake", "is '~nobody-of-that-name/lake' ("),
    ("/data/a\nb", "is '/data/a\\nb': leave out the control characters"),
    ("/data/a\0b", "is '/data/a\\x00b': leave out the control characters"),
    ("/data/\udcff", "is '/data/\\udcff': leave out the control characters, and write it in UTF-8"),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_what_is_no_address_is_refused_by_the_name_that_the_person_wrote(text: str, sentence: str) -> None:
    if text:  # an empty variable takes its default
        with pytest.raises(SettingsError, match="^NBIA_LAKE " + re.escape(sentence)) as raised:
            Settings.from_env({"NBIA_LAKE": text})
        assert raised.value.__cause__ is None
    with pytest.raises(SettingsError, match="^lake " + re.escape(sentence)):
        Settings(lake=text)
    with pytest.raises(LakeError, match="^the lake " + re.escape(sentence)) as of_lake:
        Lake(text)
    assert error_text(of_lake.value).endswith("(NBIA_LAKE)")


SECRET = "wJal/rXUtnFEMI"


@pytest.mark.parametrize(
    "text",
    [
        f"s3://AKIA:{SECRET}@bucket/lake",
        f"sftp://me:{SECRET}@host:22/lake",
        f"ftp://:{SECRET}@host/lake",
        f"abfs://c@account.dfs.core.windows.net/lake?sv=1&sig={SECRET}",
        f"s3://bucket/lake?aws_secret_access_key={SECRET}",
        f"s3://bucket/lake?X-Amz-Security-Token={SECRET}",
    ],
)
def test_a_secret_in_the_address_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(
        SettingsError, match=r"^NBIA_LAKE contains a password or a key, .* AWS_SECRET_ACCESS_KEY"
    ) as first:
        Settings.from_env({"NBIA_LAKE": text})
    with pytest.raises(LakeError, match="the lake contains a password or a key") as second:
        Lake(text)
    for raised in (first.value, second.value):
        assert SECRET not in str(raised) + repr(raised) + repr(raised.__context__)
    assert SECRET not in without_secrets(f"cannot open {text}: no") and "cannot open" in without_secrets(
        f"cannot open {text}"
    )


@pytest.mark.parametrize(
    "text",
    [
        "no answer from http://127.0.0.1:8080/a@b, sorry",
        "abfs://container@account.dfs.core.windows.net/lake",
        "sftp://me@host:22/lake",
        "s3://bucket/a:b@c?versionId=1",
        "https://x.org/nbia-api?Collection=A&PatientID=1",
    ],
)
def test_what_only_resembles_a_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_the_working_directory_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(
        ValueError, match=r"is 'lake' \(.*No such file or directory.*\): set it to an absolute directory"
    ):
        lake_address("lake")
    assert lake_address("/lake") == "/lake"


def test_a_file_is_no_lake(tmp_path: Path) -> None:
    (tmp_path / "lake").write_text("x")
    for text in (f"{tmp_path}/lake", f"{tmp_path}/lake/", f"file://{tmp_path}/lake"):
        with pytest.raises(LakeError, match=r"^the lake .*/lake is a file: set it to a directory$") as raised:
            Lake(text)
        assert raised.value.arguments == ("lake",)


def test_a_lake_at_the_root_is_not_in_the_working_directory() -> None:
    store = Lake("/")._unchecked
    assert store.full("tables") == "/tables"
    assert Lake("/").url("tables") == "/tables"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("foo://x", r"cannot be opened \(ValueError: Protocol not known: foo\): set it to a directory"),
        ("gs://x/y", r"cannot be opened .*: install the package for it, pip install 'nbia-pipeline\[gcs\]'"),
        ("s3x://x", r"cannot be opened .*: set it to a directory, or to a URI whose fsspec package"),
        ("://x", "is '://x': a URI begins with its scheme"),
        ("1://x", "cannot be opened"),
        ("abc def://x", "cannot be opened"),
    ],
)
def test_a_scheme_that_is_not_known_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(LakeError, match=sentence):
        Lake(text)


def test_a_path_of_bundled_certificates_that_cannot_be_looked_at_is_a_sentence() -> None:
    for text in ("x" * 5000, "/dev/null/x", "a\0b"):
        with pytest.raises(SettingsError, match=r"^ca_bundle is .*: there is no such file$"):
            Settings(ca_bundle=text)
