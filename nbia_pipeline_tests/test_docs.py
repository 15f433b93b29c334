"""The documentation says what the code does: variables, commands, options, tables, columns, and every snippet."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.cli.main import COMMANDS
from nbia_pipeline.defs.mirror_job import MirrorConfig
from nbia_pipeline.embedded.demo.catalog import demo_catalog
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.headers.shards import plan_headers, write_shard
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.schema import TABLES
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import VARIABLES, Settings
from nbia_pipeline_tests.helpers.archives import FAST, serving

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OF_THE_PROJECT = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
PAGES = [README, *OF_THE_PROJECT, *sorted((ROOT / "docs").glob("*.md"))]

TCIA = "https://services.cancerimagingarchive.net/nbia-api"
COLLECTION = "LIDC-IDRI"

# Variables of others, and an example of one that a person may choose.
OTHER_VARIABLES = {"NLST_PASSWORD"}


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> Iterator[str]:
    """Yield the code blocks of a page."""
    yield from re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def table_cells(page: Path, heading: str) -> list[list[str]]:
    """Return the rows of the first table after a heading."""
    _, _, after = page.read_text(encoding="utf-8").partition(f"\n{heading}\n")
    lines = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)
    assert lines is not None, f"{page.name} has no table after {heading!r}"
    return [[c.strip() for c in line.strip().strip("|").split("|")] for line in lines[0].splitlines()[2:]]


# --- variables


def test_every_variable_is_described_and_no_other() -> None:
    rows = table_cells(ROOT / "docs" / "variables.md", "## Settings")
    assert sorted(row[0].strip("`") for row in rows) == sorted(VARIABLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_variable_that_is_not_there(page: Path) -> None:
    assert set(re.findall(r"\bNBIA_[A-Z_]+\b", page.read_text(encoding="utf-8"))) <= set(VARIABLES)


def test_the_selections_on_the_page_about_them_are_accepted() -> None:
    page = ROOT / "docs" / "restrict.md"
    (shell,) = re.findall(r"NBIA_SELECT='(.*)'", page.read_text(encoding="utf-8"))
    selected = Settings.from_env({"NBIA_SELECT": shell}).select
    (attributes,) = [
        found["attributes"] for found in map(yaml.safe_load, blocks(page, "yaml")) if "attributes" in found
    ]
    assert list(selected) == list(Settings(**attributes).select) == ["LIDC-IDRI", "TCGA-*"]
    (config,) = [found for found in map(yaml.safe_load, blocks(page, "yaml")) if "attributes" not in found]
    assert MirrorConfig(**config).collections == ["LIDC-IDRI"]


# --- commands, options, tables, columns


@pytest.mark.parametrize("name", ["tables.md", "commands.md", "variables.md", "../nbia_pipeline/variables.py"])
def test_the_reference_is_that_of_the_code(name: str) -> None:
    made = reference().PAGES[name]()
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == made, "run: python docs/reference.py"


def test_the_reference_has_every_command_table_and_column() -> None:
    module = reference()
    commands, tables = module.commands_page(), module.tables_page()
    assert [c for c in COMMANDS if f"## nbia-pipeline {c}\n" not in commands] == []
    missing = [
        f"{table.name}.{column.name}"
        for table in TABLES.values()
        for column in table.columns
        if f"| `{column.name}`" not in tables.split(f"## {table.name}\n")[1].split("\n## ")[0]
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_a_page_uses_exists(page: Path) -> None:
    sections = reference().commands_page().split("\n## nbia-pipeline ")
    options = {s.partition("\n")[0]: set(re.findall(r"`(--[\w-]+)", s)) for s in sections[1:]}
    for line in re.findall(r"nbia-pipeline (\w+(?: [^`#\n]*)?)", page.read_text(encoding="utf-8")):
        command, *words = line.split()
        if command in COMMANDS:
            used = {w.partition("=")[0].rstrip(",.:;)") for w in words if w.startswith("--")}
            assert used <= options[command] | {"--help"}, line


def test_the_page_of_the_lake_names_every_table() -> None:
    rows = table_cells(ROOT / "docs" / "lake.md", "## The tables")
    named = {t for row in rows for t in re.findall(r"`(\w+)`", row[0])}
    assert named == set(TABLES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert not target or (page.parent / target).exists(), target


def test_the_browser_tests_take_every_picture_and_a_page_shows_it() -> None:
    code = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "nbia_pipeline_tests" / "browser").glob("test_*.py"))
    shown = {n for page in PAGES for n in re.findall(r"images/([\w-]+\.png)", page.read_text(encoding="utf-8"))}
    there = {p.name for p in (ROOT / "docs" / "images").iterdir()}
    assert there == shown == set(re.findall(r'picture\("([\w-]+\.png)"', code))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_is_there(page: Path) -> None:
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text(encoding="utf-8")):
        assert (ROOT / "nbia_pipeline" / path).is_file() or (ROOT / path).is_file(), path


# --- the site and the package


def test_every_page_is_on_the_site() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    listed = {name for tree in blocks(ROOT / "docs" / "index.md", "{toctree}") for name in tree.split()}
    assert {page.stem for page in PAGES if page.parent.name == "docs"} - listed == {"index"}
    assert all(f"({page})" in index for page in ("first-hour.md", "tutorial-tcia.md", "troubleshooting.md"))


def test_the_links_on_the_page_of_the_package_lead_to_files_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}
    monkeypatch.setitem(sys.modules, "setuptools", SimpleNamespace(setup=given.update))
    made = runpy.run_path(str(ROOT / "setup.py"))
    text = given["long_description"]
    links = re.findall(r"(!?)\[[^\]]*\]\(([^)#]*)(?:#[^)]*)?\)", text)
    inside = [(mark, link) for mark, link in links if link.startswith(made["REPOSITORY"])]
    assert len(inside) > 20
    for mark, link in inside:
        kind, _, path = link.removeprefix(made["REPOSITORY"]).partition("/main/")
        assert kind == ("/raw" if mark else "/blob") and (ROOT / path).is_file(), link
    assert all(link.startswith("https://") for _, link in links)


@pytest.mark.parametrize(
    ("without", "call"),
    [
        ("filelock fsspec", f"print(client.series({COLLECTION!r}).num_rows)"),
        ("", f"import nbia_pipeline as n; print(n.Mirror(client, n.Lake('lake')).run({COLLECTION!r}).fetched)"),
    ],
    ids=["client", "engine"],
)
def test_the_client_and_the_engine_need_only_the_packages_that_the_page_names(
    without: str, call: str, address: str, tmp_path: Path
) -> None:
    code = f"""if True:
        import sys
        others = "click dagster isal numpy pandas PIL pydantic pydicom starlette uvicorn {without}"
        sys.modules.update(dict.fromkeys(others.split()))  # an import of any of them fails
        from nbia_pipeline import NbiaClient
        with NbiaClient({address!r}) as client:
            {call}
    """
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "3\n", done.stderr


# --- snippets


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """An archive with a collection of the name that the pages use."""
    app = create_app(demo_catalog())
    control = app.state.archive.control
    for like in [s["SeriesInstanceUID"] for s in control.series("TCGA-DEMO") if s["Modality"] in ("CT", "MR")][:3]:
        control.add_series(COLLECTION, like=like, patient="LIDC-0001", slices=3)
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def folder(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a lake, as the README's commands leave it."""
    made = tmp_path_factory.mktemp("snippets")
    with NbiaClient(address, options=FAST) as client:
        lake = Lake(str(made / "lake"))
        Mirror(client, lake).run(COLLECTION)
    for shard in plan_headers(lake, COLLECTION):
        write_shard(lake, shard)
    return made


SNIPPETS = [(page, code) for page in PAGES for code in blocks(page, "python")]


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[f"{p.name}-{n}" for n, (p, _) in enumerate(SNIPPETS)])
def test_every_python_snippet_runs(page: Path, code: str, address: str, folder: Path, tmp_path: Path) -> None:
    if page.name == "embedded-archive.md":
        pytest.skip("its snippets are run by embedded/test_control.py")
    if "import polars" in code:
        pytest.importorskip("polars")
    work = tmp_path / "work"
    shutil.copytree(folder, work)
    done = subprocess.run(
        [sys.executable, "-c", code.replace(TCIA, address)], cwd=work, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_engine_of_the_readme_mirrors_a_collection(address: str, tmp_path: Path) -> None:
    """The five lines, verbatim but for the address, on a machine that has no lake yet."""
    (code,) = (code for code in blocks(README, "python") if "Mirror(" in code)
    done = subprocess.run(
        [sys.executable, "-c", code.replace(TCIA, address)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    receipts = Lake(str(tmp_path / "lake")).read_table(IMAGE_SERIES, COLLECTION)
    assert receipts["Status"].to_pylist() == ["complete"] * 3
    assert len(list((tmp_path / "lake" / "images").rglob("*.dcm"))) == 9


@pytest.mark.parametrize("target", ["demo", "test", "test-fast", "dev", "lint", "types", "docs", "bench"])
def test_the_makefile_has_what_the_readme_names(target: str) -> None:
    assert f"\n{target}:" in (ROOT / "Makefile").read_text(encoding="utf-8")
