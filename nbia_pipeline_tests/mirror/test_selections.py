"""The selections of the configuration: which series are wanted, and what becomes of the receipts of the others."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.engine import Mirror, preview
from nbia_pipeline.mirror.journal import DAMAGED, revoke
from nbia_pipeline.mirror.plan import Bounds
from nbia_pipeline.mirror.selection import NotRead, Selection, SelectionError, Selections
from nbia_pipeline.schema.tables import IMAGE_SERIES, SELECTED_SERIES, SERIES

COLLECTION = "HeadNeckMix"
PLAN_ALONE = Bounds(max_series=0)


@pytest.fixture(scope="module")
def listed(demo_archive: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the list of a collection's series."""
    lake = Lake(str(tmp_path_factory.mktemp("listed")))
    with NbiaClient(demo_archive) as client:
        lake.write_table(SERIES, client.series(COLLECTION), COLLECTION)
    return Path(lake.uri)


@pytest.fixture
def lake(listed: Path, tmp_path: Path) -> Lake:
    return Lake(str(shutil.copytree(listed, tmp_path / "lake")))


def series_of(lake: Lake, modality: str) -> set[str]:
    rows = lake.read_table(SERIES, COLLECTION)
    return set(rows.filter(pc.equal(rows["Modality"], modality))["SeriesInstanceUID"].to_pylist())


def receipts(lake: Lake) -> dict[str, str]:
    rows = lake.read_table(IMAGE_SERIES, COLLECTION)
    return dict(zip(rows["SeriesInstanceUID"].to_pylist(), rows["Status"].to_pylist(), strict=True))


def mirror(client: NbiaClient, lake: Lake, **entry: Any) -> Mirror:
    return Mirror(client, lake, selections=Selections({"HeadNeck*": entry, "*": {"modalities": ["PT"]}}))


def test_the_first_entry_that_matches_applies() -> None:
    selections = Selections({"TCGA-LUAD": {"modalities": ["CT"]}, "TCGA-*": {"modalities": ["MR"]}})
    assert selections.entry("TCGA-LUAD") == {"modalities": ["CT"]}
    assert selections.entry("TCGA-BRCA") == {"modalities": ["MR"]}
    assert selections.entry("tcga-luad") == {}


def test_only_what_is_wanted_is_pending_and_planned(client: NbiaClient, lake: Lake) -> None:
    ct = series_of(lake, "CT")
    of_ct = mirror(client, lake, modalities=["CT"])
    plan = of_ct.plan(COLLECTION, bounds=PLAN_ALONE)
    assert {w.SeriesInstanceUID for w in plan.left} == ct and receipts(lake) == dict.fromkeys(ct, "pending")
    assert (plan.wanted_figures.series, plan.unselected) == (len(ct), 21 - len(ct))
    assert plan.text().endswith(f"{21 - len(ct)} not selected")
    # With the run's own selection, both must match.
    assert of_ct.plan(COLLECTION, Selection(modalities=("MR",)), PLAN_ALONE).left == []
    one = min(ct)
    assert [w.SeriesInstanceUID for w in of_ct.plan(COLLECTION, Selection(series=(one,)), PLAN_ALONE).left] == [one]
    # What follows knows nothing of a selection, and makes none of the others pending.
    of_ct.commit(COLLECTION)
    commit(lake, COLLECTION)
    assert set(receipts(lake)) == ct


def test_what_is_wanted_no_longer_keeps_its_files_and_loses_only_what_was_never_fetched(
    client: NbiaClient, lake: Lake
) -> None:
    ct = sorted(series_of(lake, "CT"))
    of_ct = mirror(client, lake, modalities=["CT"])
    of_ct.fetch(of_ct.plan(COLLECTION, bounds=Bounds(max_series=1)).todo)
    of_ct.commit(COLLECTION)
    assert Counter(receipts(lake).values()) == {"complete": 1, "pending": len(ct) - 1}
    (there,) = (uid for uid, status in receipts(lake).items() if status == "complete")
    of_mr = mirror(client, lake, modalities=["MR"])
    of_mr.plan(COLLECTION, bounds=PLAN_ALONE)
    assert receipts(lake) == {there: "complete", **dict.fromkeys(series_of(lake, "MR"), "pending")}
    # Its files are found damaged: it was in the lake, so it is fetched again.
    revoke(lake, COLLECTION, {there: f"{DAMAGED}: gone"})
    assert there in {w.SeriesInstanceUID for w in of_mr.plan(COLLECTION, bounds=PLAN_ALONE).left}
    assert receipts(lake)[there] == "pending"


def test_the_series_of_a_manifest_are_remembered(client: NbiaClient, lake: Lake, tmp_path: Path) -> None:
    ct, (mr, *_) = sorted(series_of(lake, "CT")), sorted(series_of(lake, "MR"))
    file = tmp_path / "some.tcia"
    file.write_text(f"ListOfSeriesToDownload=\n{ct[0]}\n1.2.3\n")
    of_list = mirror(client, lake, manifest=str(file), series=[mr])
    selections, rows = of_list.selections, lake.read_table(SERIES, COLLECTION)
    with pytest.raises(NotRead, match=r"some\.tcia', which selects the series of 'HeadNeckMix', was not read yet"):
        preview(lake, COLLECTION, selections=selections)
    assert selections.is_outdated(lake, COLLECTION)
    of_list.plan(COLLECTION, bounds=PLAN_ALONE)
    assert set(receipts(lake)) == {ct[0], mr}, "what a manifest names is added to what is named"
    assert not selections.is_outdated(lake, COLLECTION)
    # The file is broken: nothing is planned, and all goes by what it said last.
    file.write_text("")
    with pytest.raises(SelectionError, match="names no series"):
        of_list.plan(COLLECTION)
    assert {w.SeriesInstanceUID for w in preview(lake, COLLECTION, selections=selections).todo} == {ct[0], mr}
    # None of the collection: nothing of it is wanted, and not all of it.
    file.write_text("ListOfSeriesToDownload=\n1.2.3\n")
    none = mirror(client, lake, manifest=str(file))
    assert none.selections.is_outdated(lake, COLLECTION), "another entry"
    assert (none.plan(COLLECTION, bounds=PLAN_ALONE).left, receipts(lake)) == ([], {})
    assert none.selections.wanted(lake, COLLECTION, rows).num_rows == 0
    assert lake.count_rows(SELECTED_SERIES, COLLECTION) == 0


def test_without_an_entry_nothing_changes(client: NbiaClient, lake: Lake) -> None:
    rows = lake.read_table(SERIES, COLLECTION)
    assert Selections({"TCGA-*": {"modalities": ["CT"]}}).wanted(lake, COLLECTION, rows) is rows
    assert Selections({COLLECTION: {}}).wanted(lake, COLLECTION, rows) is rows
    assert isinstance(rows, pa.Table)
