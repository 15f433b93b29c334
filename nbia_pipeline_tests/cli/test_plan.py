"""``nbia-pipeline plan`` says what a run would fetch, and ``run`` with the same options fetches just that."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import click
import dagster as dg
import pytest

from nbia_pipeline.cli.main import main
from nbia_pipeline.cli.options import Options, as_command, images_fields, size, with_selection
from nbia_pipeline.cli.run import run_main_job
from nbia_pipeline.defs.assets.images import ImagesConfig
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import COLLECTIONS, IMAGE_SERIES, SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.manifests import HEAD
from nbia_pipeline_tests.helpers.places import Place, copied, files_below, place_at

MIRRORED = ("TCGA-DEMO", "Lung Phantom CT")


@pytest.fixture(scope="module")
def first(demo_archive: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A lake with the tables of four collections; of two, CT images bounded to two series each."""
    folder = tmp_path_factory.mktemp("plan")
    settings = Settings(archive=demo_archive, lake=str(folder / "lake"), images=MIRRORED, headers=())
    first = settings.model_copy(update={"images": MIRRORED[:1]})
    with dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
        asked = {"modalities": ["ct"], "max_series": 2}
        assert run_main_job(first, instance, images=asked).fetched["left_series"] == 2
        # The bound is one of all: the range of the other collection comes first, and uses it up.
        outcome = run_main_job(settings, instance, images=asked)
    assert outcome.problems == [], "images that were not asked for are no problem"
    assert (outcome.fetched["fetched_series"], outcome.fetched["left_series"]) == (2, 4)
    return settings


@pytest.fixture
def filled(first: Settings, place: Place) -> Settings:
    """A copy of that lake."""
    return first.model_copy(update={"lake": copied(Path(first.lake), place / "lake").uri})


@pytest.fixture
def environment(filled: Settings, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("NBIA_ARCHIVE", filled.archive)
    monkeypatch.setenv("NBIA_LAKE", filled.lake)
    monkeypatch.setenv("NBIA_IMAGES", ",".join(MIRRORED))
    return monkeypatch


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[dict[str, list[str]], str]:
    """Return the cells of the printed table by collection, and what follows it."""
    assert main(["plan", *words]) == 0
    out = capsys.readouterr().out
    table, _, rest = out.partition("\nFree ")
    rows = [line for line in table.splitlines()[1:] if line and not line.startswith("-")]
    return {row[:16].strip(): row[16:].split("  ") for row in rows}, f"Free {rest}"


def counts(row: list[str]) -> list[int]:
    """Return wanted, there, to fetch and left, as pairs of series and files."""
    cells = [c.strip() for c in row if c.strip()]
    return [int(c.replace(",", "")) for n, c in enumerate(cells) if n % 3 != 2]


@pytest.mark.usefixtures("environment")
def test_a_plan_has_the_figures_of_every_mirrored_collection(capsys: pytest.CaptureFixture[str]) -> None:
    rows, rest = planned(capsys)
    assert {name: counts(row) for name, row in rows.items()} == {
        "Lung Phantom CT": [4, 62, 2, 26, 2, 36, 0, 0],
        "TCGA-DEMO": [9, 124, 2, 36, 7, 88, 0, 0],
        "total": [13, 186, 4, 62, 9, 124, 0, 0],
    }
    assert rest.startswith("Free      ")
    assert "Note" not in rest


@pytest.mark.usefixtures("environment")
def test_a_plan_selects_and_bounds_as_a_run_would(capsys: pytest.CaptureFixture[str]) -> None:
    rows, rest = planned(capsys, "--modality", "ct", "--max-series", "1", "TCGA*")
    assert counts(rows["TCGA-DEMO"]) == counts(rows["total"]) == [4, 72, 2, 36, 1, 18, 1, 18]
    assert "5 series are not selected, and not counted above" in rest
    rows, _ = planned(capsys, "--max-bytes", "1kB")
    assert counts(rows["total"])[4] == 1, "the first series, of all collections"


@pytest.mark.usefixtures("environment")
def test_a_plan_takes_series_from_a_manifest_and_a_cart(
    filled: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = Lake(filled.lake).read_table(SERIES, "TCGA-DEMO")["SeriesInstanceUID"].to_pylist()
    file = tmp_path / "mine.tcia"
    file.write_text(HEAD + "\n".join(listed[3:6]) + "\n")
    rows, _ = planned(capsys, "--manifest", str(file), "--series", listed[0])
    assert counts(rows["total"])[0] == 4
    rows, _ = planned(capsys, "--cart", "demo CART")
    assert counts(rows["total"])[0] == 2


@pytest.mark.usefixtures("environment")
def test_a_plan_says_what_is_not_mirrored_and_what_was_not_listed(
    filled: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = Lake(filled.lake)
    known = lake.read_table(COLLECTIONS)
    rows = [*known.to_pylist(), {"Collection": "Brand New"}]
    lake.write_table(COLLECTIONS, type(known).from_pylist(rows, schema=COLLECTIONS.schema))
    table, rest = planned(capsys, "Brand New", "QIN*")
    assert set(table) == {"QIN_Breast.v2", "total"}
    assert "QIN_Breast.v2: its images are not mirrored: a run fetches them once NBIA_IMAGES names it" in rest
    assert "Brand New: its series are not listed yet: materialize `series` first" in rest


@pytest.mark.disk("room on a disk")
def test_a_plan_shows_what_does_not_fit_on_the_disk(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=51_000_000))
    rows, rest = planned(capsys)
    wanted, _, there, _, to_fetch, _, left, _ = counts(rows["total"])
    assert (wanted, left) == (there + to_fetch + left, 13 - there - to_fetch)
    assert left
    notes = [line for line in rest.splitlines() if "do not fit on the disk" in line]
    assert notes
    assert all(" do not fit on the disk, which has room for " in note for note in notes)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["TCGA-demo"], "the lake has no collection 'TCGA-demo': did you mean TCGA-DEMO?"),
        (["--manifest", "none.tcia"], "cannot read the manifest none.tcia (No such file or directory)"),
        (["--cart", "nobodys"], "the archive lists no series in a shared cart 'nobodys'"),
        (
            ["--modality", "CT", "--modality", "XR"],
            "no series of Lung Phantom CT, TCGA-DEMO has the modality 'XR'",
        ),
        (
            ["--patient", "TCGA-DM-A0O1"],
            "no series of Lung Phantom CT, TCGA-DEMO has the PatientID 'TCGA-DM-A0O1'",
        ),
        (["--series", "1.2.3"], "no series of Lung Phantom CT, TCGA-DEMO has the SeriesInstanceUID '1.2.3': there are"),
        (
            ["TCGA*", "--modality", "SEG", "--patient", "TCGA-DM-A002"],
            "no series of TCGA-DEMO matches the selection",
        ),
    ],
)
def test_what_cannot_be_planned_is_one_clear_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"nbia-pipeline: {sentence}")
    assert told.err.count("\n") == 1


def test_an_empty_lake_has_nothing_to_plan(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    none = str(place / "none")
    monkeypatch.setenv("NBIA_LAKE", none)
    assert main(["plan"]) == 2
    assert f"there is no lake in {Lake(none).uri} (NBIA_LAKE): check the address, or" in capsys.readouterr().err
    assert main(["plan", "--lake", none]) == 2
    assert " (--lake): check the address" in capsys.readouterr().err
    assert files_below(place / "none") == []


@pytest.mark.usefixtures("environment")
def test_the_plan_is_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "TCGA-DEMO", "--modality", "ct", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)["collections"]
    assert list(found) == ["TCGA-DEMO"]
    assert (found["TCGA-DEMO"]["wanted"]["series"], found["TCGA-DEMO"]["in_the_lake"]["series"]) == (4, 2)
    assert isinstance(found["TCGA-DEMO"]["to_fetch"]["bytes"], int)
    assert "TCGA-DEMO" in told.err, "what people read"
    assert main(["plan", "Nope", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"].startswith("the lake has no collection 'Nope'")


@pytest.mark.usefixtures("environment")
def test_a_quiet_plan_prints_problems_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["plan", "-q", "Nope"]) == 2
    assert "the lake has no collection 'Nope'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tcga-demo"], "the archive lists no collection 'tcga-demo' for this account: did you mean TCGA-DEMO?"),
        (["--cart", "Nope"], "the archive lists no series in a shared cart 'Nope'"),
        (["--bwlimit", "fast"], "--bwlimit is 'fast': set it to bytes per second"),
    ],
)
def test_a_run_of_what_is_not_there_begins_nothing(
    words: list[str],
    sentence: str,
    environment: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    environment.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    assert main(["run", *words, "--lake", str(tmp_path / "none")]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(f"nbia-pipeline: {sentence}")
    assert (told.out, list(tmp_path.glob("[hn]*"))) == ("", [])


def test_a_run_mirrors_the_collections_that_it_is_told(
    filled: Settings, environment: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    before = files_below(place_at(filled.lake))
    assert main(["run", "QIN*", "--modality", "XR"]) == 2
    assert "no series of QIN_Breast.v2 has the modality 'XR': there are MR, " in capsys.readouterr().err
    assert [f for f in files_below(place_at(filled.lake)) if f not in before and "/images/" in str(f)] == []
    assert main(["run", "QIN*", "--modality", "MR", "--max-series", "1", "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["fetched"]["fetched_series"], found["problems"]) == (1, [])
    assert found["collections"]["QIN_Breast.v2"]["complete"] == 1
    assert found["collections"]["TCGA-DEMO"]["complete"] == 2, "as before"
    assert "Fetched   1 series" in told.err
    assert os.environ["NBIA_IMAGES"] == ",".join(MIRRORED)


@pytest.mark.usefixtures("environment")
def test_planning_changes_nothing(filled: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> dict[str, float]:
        return {str(p): p.stat().st_mtime for p in files_below(place_at(filled.lake))}

    before = state()
    planned(capsys, "--modality", "MR")
    assert state() == before


def test_what_was_not_selected_stays_pending(filled: Settings) -> None:
    receipts = Lake(filled.lake).read_table(IMAGE_SERIES, "TCGA-DEMO")
    assert sorted(receipts["Status"].to_pylist()) == ["complete"] * 2 + ["pending"] * 7


# --- the options


def options(*words: str) -> Options:
    @as_command()
    @with_selection
    def command(options: Options) -> int:
        raise AssertionError

    return Options(**command.make_context("command", [*words]).params)


def test_the_options_are_the_run_config_of_the_plan_op() -> None:
    words = "--modality CT --modality MR --body-part B --patient P --series 1.2 --manifest m.tcia --cart C".split()
    config = images_fields(options(*words, "--max-bytes", "1.5 TB", "--max-series", "7"))
    assert config == {
        "modalities": ["CT", "MR"],
        "body_parts": ["B"],
        "patients": ["P"],
        "series": ["1.2"],
        "manifest": str(Path("m.tcia").absolute()),
        "cart": "C",
        "max_bytes": 1_500_000_000_000,
        "max_series": 7,
    }
    assert set(config) <= set(ImagesConfig.model_fields)
    assert images_fields(options()) == {}


@pytest.mark.parametrize(
    ("text", "value"), [("10GB", 10**10), ("500mb", 5 * 10**8), ("1.5 TB", 15 * 10**11), ("2k", 2000), ("7", 7)]
)
def test_a_size_is_read_in_powers_of_ten(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "10 GiB", "1e9", "0.0001kB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is not a size: use a value such as 10GB, 500MB or 1\.5TB$"):
        size(text)
