"""A table that is damaged, cut or missing is rebuilt by the next run, or by ``verify --repair``."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nbia_pipeline.archive import ArchiveUnreachable, NbiaClient
from nbia_pipeline.changes.listing import write_listing
from nbia_pipeline.changes.metadata import metadata_of
from nbia_pipeline.cli import main
from nbia_pipeline.cli.run import run_main_job
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import DamagedFile, Lake, LakeError
from nbia_pipeline.lake.damage import damage_of
from nbia_pipeline.lake.filesystem import Guarded
from nbia_pipeline.lake.layout import table_path
from nbia_pipeline.mirror.engine import Mirror, preview
from nbia_pipeline.mirror.selection import LIST_OF_SERIES, Selections
from nbia_pipeline.schema import TABLES, Table
from nbia_pipeline.schema import tables as t
from nbia_pipeline.schema.status import COMPLETE, PENDING
from nbia_pipeline.settings import Settings
from nbia_pipeline.verify.tables import damaged_tables
from nbia_pipeline_tests.helpers.archives import FAST, serving
from nbia_pipeline_tests.helpers.damage import DAMAGES, damage, tables_of
from nbia_pipeline_tests.helpers.faults import NULL, Faults, answer
from nbia_pipeline_tests.helpers.places import Place, copied

NAME = "TCGA-DEMO"  # one of its series has annotation files
DOWNLOADS = ("getImageWithMD5Hash", "getSingleImage")
CANNOT_BE_HAD_AGAIN = (t.SERIES_CHANGES.name, NAME)
BROKEN = answer(500, NULL)
ODD = {"Collection": NAME, "TableName": "series", "RowKey": "1.2", "ColumnName": "FileSize", "Why": "it is odd"}


@dataclass
class Site:
    """An archive, and a lake that mirrors a collection of it.

    Attributes:
        settings: of the main job; the lake is that of the test.
        around: the archive, for faults and requests.
        calm: what the tables contain if nothing disturbs them.
        lake: the lake.
    """

    settings: Settings
    around: Faults
    calm: dict[tuple[str, str | None], Any]
    lake: Lake

    def client(self) -> NbiaClient:
        return NbiaClient(self.settings.archive, options=FAST)

    def mirror(self) -> int:
        """Mirror once; return how many downloads that took."""
        self.around.traffic.reset()
        with self.client() as client:
            Mirror(client, self.lake, selections=Selections(self.settings.select)).run(NAME)
        return sum(self.around.count(name) for name in DOWNLOADS)

    def differences(self) -> set[tuple[str, str | None]]:
        now = tables_of(self.lake)
        return {key for key in {*now, *self.calm} if now.get(key) != self.calm.get(key)}

    def receipts(self) -> dict[str, str]:
        rows = self.lake.read_table(t.IMAGE_SERIES, NAME, columns=["SeriesInstanceUID", "Status"])
        return dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, demo: Catalog) -> Iterator[Site]:
    """A lake that the main job filled, and which a second listing changed: every table has an earlier file."""
    around = Faults(create_app(demo))
    with serving(around) as url, dg.DagsterInstance.ephemeral() as instance:
        folder = tmp_path_factory.mktemp("first")
        with NbiaClient(url, options=FAST) as client:
            listed = client.series(NAME)["SeriesInstanceUID"].to_pylist()
        (folder / "all.tcia").write_text("\n".join([LIST_OF_SERIES, *listed]))
        select = {NAME: {"manifest": str(folder / "all.tcia")}}
        known = {"collections": (NAME,), "images": ("*",), "select": select}
        settings = Settings(archive=url, lake=str(folder / "lake"), **known)
        assert run_main_job(settings, instance).problems == []
        lake = Lake(settings.lake)
        around.app.state.archive.control.edit(uid_of(lake), SeriesDescription="another one")  # type: ignore[attr-defined]
        with NbiaClient(url, options=FAST) as client:
            Mirror(client, lake).run(NAME)
            write_listing(lake, t.SERIES_METADATA, client.api, lambda: metadata_of(client, lake, NAME), NAME)
        yield Site(settings, around, tables_of(lake), lake)


@pytest.fixture
def site(first: Site, place: Place) -> Site:
    """The same archive, and a copy of the lake; one value in it does not fit, until the archive is listed again."""
    first.around.reset()
    lake = copied(Path(first.lake.uri), place / "lake")
    lake.write_table(t.CONFORMANCE, pa.Table.from_pylist([ODD], schema=t.CONFORMANCE.schema), NAME)
    settings = first.settings.model_copy(update={"lake": lake.uri})
    return Site(settings, first.around, first.calm, lake)


def uid_of(lake: Lake) -> str:
    return str(min(lake.read_table(t.SERIES, NAME)["SeriesInstanceUID"].to_pylist()))


# Every table with every damage takes a minute: NBIA_TEST_DAMAGE=all. Else each table has one, those of the engine two.
IN_A_MIRROR = [table for table in t.TABLES.values() if table.partitioned and table != t.SERIES_METADATA]
OF_ENGINE = (t.SERIES_CHANGES, t.SERIES_SEEN, t.IMAGE_SERIES, t.INSTANCES)
CASES = [
    pytest.param(table, name, id=f"{table.name}, {name}")
    for number, table in enumerate(IN_A_MIRROR)
    for offset, name in enumerate(DAMAGES)
    if os.environ.get("NBIA_TEST_DAMAGE") == "all"
    or offset == number % (len(DAMAGES) - 1)
    or (table in OF_ENGINE and name == "missing")
]


@pytest.mark.parametrize(("table", "name"), CASES)
def test_a_run_makes_a_table_again(site: Site, table: Table, name: str, caplog: pytest.LogCaptureFixture) -> None:
    damage(site.lake, table, DAMAGES[name], NAME)
    hurt = damage_of(site.lake, table, NAME) is not None  # not every changed byte means something
    with caplog.at_level(logging.WARNING):
        downloads = site.mirror()
    path = table_path(table.name, NAME)
    if table == t.VERIFICATIONS:  # a mirror reads no file again: the next verification writes it
        site.lake.remove(path)
        assert site.differences() == {(table.name, NAME)}
        return
    lost = table == t.SERIES_CHANGES and (hurt or name == "missing")
    assert site.differences() == ({CANNOT_BE_HAD_AGAIN} if lost else set())
    assert downloads == 0
    assert damaged_tables(site.lake) == []
    if hurt:
        assert path in caplog.text
    if lost:
        assert "the feed of changes has 9 rows, and had 10: 1 are lost" in caplog.text
        kept = [row for row in site.calm[CANNOT_BE_HAD_AGAIN] if row["Change"] == "added"]
        assert tables_of(site.lake)[CANNOT_BE_HAD_AGAIN] == kept
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert site.mirror() == 0 and caplog.text == ""


def test_the_main_job_makes_all_tables_again(site: Site) -> None:
    names = ("0 bytes", "first half", "NULs")
    for number, table in enumerate(TABLES.values()):
        damage(site.lake, table, DAMAGES[names[number % 3]], NAME if table.partitioned else None)
    with dg.DagsterInstance.ephemeral() as instance:
        outcome = run_main_job(site.settings, instance)
    assert outcome.problems == []
    # The earlier state lacks the last change as the earlier feed does: it is recorded again.
    assert site.differences() == set()
    assert damaged_tables(site.lake) == []
    assert set(site.receipts().values()) == {COMPLETE}


# --- verify


@pytest.fixture
def verify(site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Call the command; returns its exit code and what it printed to both."""
    monkeypatch.setenv("NBIA_LAKE", site.lake.uri)
    monkeypatch.setenv("NBIA_ARCHIVE", site.settings.archive)
    monkeypatch.setenv("NBIA_COLLECTIONS", NAME)
    monkeypatch.setenv("NBIA_SELECT", json.dumps(site.settings.select))

    def call(*words: str, command: str = "verify") -> tuple[int, str, str]:
        capfd.readouterr()
        code = main.main([command, *words])
        return code, *capfd.readouterr()

    return call


def test_verify_names_every_damaged_table_and_makes_it(site: Site, verify: Callable[..., Any]) -> None:
    assert verify()[0] == 0
    damaged = []
    for table in TABLES.values():
        name = "missing" if table in (t.SERIES_SEEN, t.IMAGE_SERIES, t.INSTANCES) else "first half"
        damage(site.lake, table, DAMAGES[name], NAME if table.partitioned else None)
        damaged.append(table_path(table.name, NAME if table.partitioned else None))
    code, _, errors = verify()
    assert code == 1
    assert [
        path for path in damaged if f"{path} in the lake" not in errors and f"{path} is missing" not in errors
    ] == []
    assert errors.count("`nbia-pipeline run` rebuilds the table, and so does `nbia-pipeline verify --repair`") >= 16
    code, output, errors = verify("--repair")
    assert (code, f"repaired {len(damaged)} of {len(damaged)} tables" in output) == (0, True), errors
    # The manifest is read by the next run of images.
    assert site.differences() <= {CANNOT_BE_HAD_AGAIN, (t.CONFORMANCE.name, NAME), (t.SELECTED_SERIES.name, NAME)}
    assert verify()[0] == 0
    site.mirror()
    assert site.differences() <= {CANNOT_BE_HAD_AGAIN, (t.CONFORMANCE.name, NAME)}


@pytest.mark.parametrize(
    "table", [t.COLLECTIONS, t.SERIES, t.SERIES_SEEN, t.IMAGE_SERIES, t.SELECTED_SERIES], ids=lambda table: table.name
)
def test_plan_says_which_table_is_damaged(site: Site, verify: Callable[..., Any], table: Table) -> None:
    damage(site.lake, table, DAMAGES["NULs"], NAME if table.partitioned else None)
    code, _, errors = verify(command="plan")
    assert code == 1 and "Traceback" not in errors
    assert table_path(table.name, NAME if table.partitioned else None) in errors and "--repair" in errors


# --- what is never taken for damage


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES], ids=["EIO", "EACCES"])
@pytest.mark.parametrize(
    "table", [t.SERIES, t.SERIES_CHANGES, t.SERIES_SEEN, t.IMAGE_SERIES, t.INSTANCES], ids=lambda table: table.name
)
def test_a_file_that_cannot_be_read_is_not_replaced(
    site: Site, table: Table, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table_path(table.name, NAME)
    before = site.lake.read_bytes(path)
    kind = type(site.lake._unchecked)
    honest_read, honest_open = kind.read, kind.open

    def fail(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    def read(store: Any, name: str) -> bytes | None:
        return fail() if name == path else honest_read(store, name)

    def opened(store: Any, name: str, size: int | None = None) -> Any:
        file = honest_open(store, name, size)
        return Guarded(file, fail) if name == path else file

    with monkeypatch.context() as patch:
        patch.setattr(kind, "read", read)
        patch.setattr(kind, "open", opened)
        with pytest.raises(LakeError, match=os.strerror(number)) as raised:
            site.mirror()
        assert not isinstance(raised.value, DamagedFile)
    assert site.lake.read_bytes(path) == before
    assert site.mirror() == 0 and site.differences() == set()


def test_receipts_are_not_made_without_the_archive(site: Site) -> None:
    damage(site.lake, t.IMAGE_SERIES, DAMAGES["0 bytes"], NAME)
    with site.client() as client:
        Mirror(client, site.lake).update_tables(NAME)
        site.around.traffic.add([Fault("drop", endpoint="getMD5Hierarchy")])
        with pytest.raises(ArchiveUnreachable):
            Mirror(client, site.lake).plan(NAME)
    assert site.lake.read_bytes(table_path(t.IMAGE_SERIES.name, NAME)) == b""
    site.around.reset()
    assert site.mirror() == 0 and site.differences() == set()


def test_a_damaged_table_is_not_emptied(site: Site) -> None:
    damage(site.lake, t.MODALITIES, DAMAGES["first half"])
    with pytest.raises(LakeError, match="would be replaced by an empty table"):
        site.lake.write_table(t.MODALITIES, t.MODALITIES.schema.empty_table())


# --- files that are not those of the archive


@pytest.mark.parametrize("table", [t.IMAGE_SERIES, t.INSTANCES], ids=lambda table: table.name)
def test_series_whose_files_are_damaged_too_are_fetched_again(site: Site, table: Table) -> None:
    series = sorted(site.receipts())
    rows = site.lake.read_table(t.INSTANCES, NAME)
    paths = {uid: rows.filter(pc.equal(rows["SeriesInstanceUID"], uid))["Path"].to_pylist() for uid in series}
    site.lake.put_bytes(paths[series[0]][0], b"")
    content = site.lake.read_bytes(paths[series[1]][0]) or b""
    site.lake.put_bytes(paths[series[1]][0], content[:-1] + b"\xff")
    site.lake.remove(paths[series[2]][0])
    site.lake.put_bytes(f"{paths[series[3]][0].rpartition('/')[0]}/.DS_Store", b"x")
    damage(site.lake, table, DAMAGES["missing"], NAME)
    with site.client() as client:
        plan = Mirror(client, site.lake).plan(NAME)
    assert sorted(w.SeriesInstanceUID for w in plan.todo) == series[:3]
    assert [uid for uid, status in site.receipts().items() if status == PENDING] == series[:3]
    assert site.mirror() == 3
    assert site.differences() == set()


@pytest.mark.parametrize("digests", ["of images", "none"])
def test_without_a_digest_of_the_series_its_images_are_compared(site: Site, digests: str) -> None:
    damage(site.lake, t.IMAGE_SERIES, DAMAGES["0 bytes"], NAME)
    calls = ["getMD5Hierarchy", *(["getM5HashForImage"] if digests == "none" else [])]
    for call in calls:
        site.around.inject(call, answer(404), times=1000)
    with site.client() as client:
        assert Mirror(client, site.lake).plan(NAME).todo == []
    rows = site.lake.read_table(t.IMAGE_SERIES, NAME)
    proof = "md5" if digests == "of images" else "count+size"
    assert set(rows["Proof"].to_pylist()) == {proof}
    assert set(site.receipts().values()) == {COMPLETE}
    assert site.lake.count_rows(t.INSTANCES, NAME) == 124


@pytest.mark.parametrize("changed", [False, True], ids=["as they were", "one changed"])
@pytest.mark.parametrize(
    ("failing", "proof"),
    [
        ({"getMD5Hierarchy": BROKEN}, "md5"),
        ({"getMD5Hierarchy": BROKEN, "getM5HashForImage": BROKEN}, None),
        ({"getMD5Hierarchy": answer(), "getSOPInstanceUIDs": answer()}, "count+size"),
    ],
    ids=["of series fail", "all fail", "no lists"],
)
def test_a_call_that_fails_neither_proves_nor_disproves(
    site: Site, failing: dict[str, Fault], proof: str | None, changed: bool
) -> None:
    series = sorted(site.receipts())
    if changed:
        path = next(p for p in sorted(site.lake.sizes("images")) if f"/{series[-1]}/" in p)
        site.lake.put_bytes(path, (site.lake.read_bytes(path) or b"")[:-1] + b"\xff")
    damage(site.lake, t.IMAGE_SERIES, DAMAGES["0 bytes"], NAME)
    for call, fault in failing.items():
        site.around.inject(call, fault, times=1000)
    with site.client() as client:
        todo = [w.SeriesInstanceUID for w in Mirror(client, site.lake).plan(NAME).todo]
    assert todo == (series if proof is None else series[-1:] if changed else [])
    rows = site.lake.read_table(t.IMAGE_SERIES, NAME)
    assert dict(zip(rows["SeriesInstanceUID"].to_pylist(), rows["Proof"].to_pylist(), strict=True)) == {
        uid: None if uid in todo else proof for uid in series
    }


def test_a_preview_of_lost_receipts_changes_nothing(site: Site) -> None:
    damage(site.lake, t.IMAGE_SERIES, DAMAGES["flipped"], NAME)
    before = site.lake.read_bytes(table_path(t.IMAGE_SERIES.name, NAME))
    with pytest.raises(DamagedFile):
        preview(site.lake, NAME)
    assert site.lake.read_bytes(table_path(t.IMAGE_SERIES.name, NAME)) == before
