"""Receipts: what was fetched and how it is proven. Written to a journal at once, to the tables by and by.

The journal is what makes a finished series survive a crash. An entry is written before the files take
their place, and names the staged directory: if that is still there later, the move is made up for; if it is
gone, the move was done.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.clock import utc_now
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import STAGING, encode, instance_name, series_path
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline.transfer.plan import COMPLETE, PENDING, WantedSeries, wanted_series
from nbia_pipeline.transfer.verify import ProvenInstance, series_md5

MD5 = "md5"
COUNT_AND_SIZE = "count+size"


@dataclass(frozen=True)
class Receipt:
    """The outcome of one series.

    Attributes:
        wanted: the series as it was listed when it was fetched.
        status: ``complete``, ``unavailable`` or ``quarantined``.
        attempts: downloads that it took.
        instances: the verified files; none unless complete.
        reason: why it is not complete.
        healed: instances that were fetched one by one.
        proof: what proves the files, ``md5`` or ``count+size``.
        fetched_at: when (UTC, without a zone).
    """

    wanted: WantedSeries
    status: str
    attempts: int
    instances: list[ProvenInstance] = field(default_factory=list)
    reason: str | None = None
    healed: int = 0
    proof: str = MD5
    fetched_at: datetime = field(default_factory=utc_now)

    @property
    def path(self) -> str:
        """Directory of the series' files, relative to the lake."""
        w = self.wanted
        return series_path(w.Collection, w.PatientID, w.StudyInstanceUID, w.SeriesInstanceUID)

    def row(self) -> dict[str, Any]:
        """Return the row of ``image_series``."""
        complete = self.status == COMPLETE
        return {
            **asdict(self.wanted),
            "Status": self.status,
            "Bytes": sum(i.Size for i in self.instances) if complete else None,
            "SeriesMD5": series_md5([i.MD5 for i in self.instances]) if complete else None,
            "FetchedAt": self.fetched_at,
            "Attempts": self.attempts,
            "Healed": self.healed,
            "Proof": self.proof if complete else None,
            "Reason": self.reason,
        }

    def instance_rows(self) -> list[dict[str, Any]]:
        """Return the rows of ``instances``."""
        series = {"SeriesInstanceUID": self.wanted.SeriesInstanceUID, "Collection": self.wanted.Collection}
        return [
            {**series, **asdict(i), "Path": f"{self.path}/{instance_name(i.SOPInstanceUID)}"} for i in self.instances
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for the journal."""
        return {
            **asdict(self),
            "wanted": self.wanted.to_json(),
            "fetched_at": self.fetched_at.isoformat(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Receipt:
        """Return what :meth:`to_json` was made of."""
        return cls(
            **{
                **values,
                "wanted": WantedSeries.from_json(values["wanted"]),
                "instances": [ProvenInstance(**i) for i in values["instances"]],
                "fetched_at": datetime.fromisoformat(values["fetched_at"]),
            }
        )


def publish_series(lake: Lake, receipt: Receipt, staged: Path) -> None:
    """Put a verified series into its place, and note it in the journal.

    Args:
        lake: where to.
        receipt: a complete one.
        staged: local directory that holds just the files; it is moved away.
    """
    with lake.lock(encode(receipt.wanted.Collection)):
        if lake.local is None:
            lake.publish_folder(staged, receipt.path)
            _note(lake, receipt, staged=None)
        else:
            entry = _note(lake, receipt, staged=staged.relative_to(lake.local / STAGING).as_posix())
            try:
                lake.publish_folder(staged, receipt.path)
            except LakeError:
                # Not a crash: the staged files go with their workspace, so the entry must not outlive them.
                lake.remove(entry)
                raise


def note_failure(lake: Lake, receipt: Receipt) -> None:
    """Note in the journal that a series could not be had."""
    with lake.lock(encode(receipt.wanted.Collection)):
        _note(lake, receipt, staged=None)


def settle(lake: Lake, collection: str, series: pa.Table) -> pa.Table:
    """Carry the journal of a collection over into its tables, and return its receipts.

    Moves that a crash prevented are made first. Listed series without a receipt get the status ``pending``;
    receipts of an older content, and of series that are no longer listed, stay as they are.

    Args:
        lake: the lake.
        collection: which partition.
        series: the rows of its ``series`` table.
    """
    with lake.lock(encode(collection)):
        entries = _journal(lake, collection)
        for entry in entries.values():
            _make_up_for(lake, entry)
        receipts = [Receipt.from_json(e["receipt"]) for e in entries.values()]
        table = _merged_receipts(lake, collection, receipts, series)
        _write_if_changed(lake, INSTANCES, collection, _merged_instances(lake, collection, receipts))
        _write_if_changed(lake, IMAGE_SERIES, collection, table)
        for path in entries:
            lake.remove(path)
        return table


def staged_by_journal(lake: Lake) -> set[str]:
    """Return the names of the staged directories that an unsettled journal still needs."""
    if lake.local is None:
        return set()
    found = set()
    for path in (lake.local / STAGING / "journal").glob("*/*.json"):
        try:
            staged = json.loads(path.read_bytes()).get("staged")
        except FileNotFoundError:
            continue  # another run settled it meanwhile
        if staged:
            found.add(staged.split("/")[0])
    return found


def _journal_path(collection: str) -> str:
    return f"{STAGING}/journal/{encode(collection)}"


def _note(lake: Lake, receipt: Receipt, staged: str | None) -> str:
    entry = json.dumps({"receipt": receipt.to_json(), "staged": staged}).encode()
    path = f"{_journal_path(receipt.wanted.Collection)}/{encode(receipt.wanted.SeriesInstanceUID)}.json"
    lake.put_bytes(path, entry)
    return path


def _journal(lake: Lake, collection: str) -> dict[str, dict[str, Any]]:
    return {path: json.loads(text) for path, text in lake.read_files(_journal_path(collection)).items()}


def _make_up_for(lake: Lake, entry: dict[str, Any]) -> None:
    if lake.local is None or entry["staged"] is None:
        return
    staged = lake.local / STAGING / entry["staged"]
    if staged.exists():
        lake.publish_folder(staged, Receipt.from_json(entry["receipt"]).path)


def _merged_receipts(lake: Lake, collection: str, receipts: list[Receipt], series: pa.Table) -> pa.Table:
    rows = {r["SeriesInstanceUID"]: r for r in lake.read_table(IMAGE_SERIES, collection).to_pylist()}
    for receipt in receipts:
        uid = receipt.wanted.SeriesInstanceUID
        # A failed attempt to refresh a series does not undo the whole one that the lake still holds.
        if receipt.status == COMPLETE or rows.get(uid, {}).get("Status") != COMPLETE:
            rows[uid] = receipt.row()
        else:
            rows[uid]["Reason"] = f"a newer version could not be fetched: {receipt.reason}"
    for wanted in wanted_series(series):
        if rows.get(wanted.SeriesInstanceUID, {}).get("Status", PENDING) == PENDING:
            rows[wanted.SeriesInstanceUID] = _pending_row(wanted)
    ordered = [rows[uid] for uid in sorted(rows)]
    return pa.Table.from_pylist(ordered, schema=IMAGE_SERIES.schema)


def _pending_row(wanted: WantedSeries) -> dict[str, Any]:
    return {**asdict(wanted), "Status": PENDING, "Attempts": 0, "Healed": 0, "Reason": "not fetched yet"}


def _merged_instances(lake: Lake, collection: str, receipts: list[Receipt]) -> pa.Table:
    old = lake.read_table(INSTANCES, collection)
    fresh = [r for r in receipts if r.status == COMPLETE]
    replaced = pa.array([r.wanted.SeriesInstanceUID for r in fresh], pa.string())
    kept = old.filter(pc.invert(pc.is_in(old["SeriesInstanceUID"], replaced)))
    new = pa.Table.from_pylist([row for r in fresh for row in r.instance_rows()], schema=INSTANCES.schema)
    order = ["SeriesInstanceUID", "InstanceNumber", "SOPInstanceUID"]
    return pa.concat_tables([kept, new]).sort_by([(name, "ascending") for name in order])


def _write_if_changed(lake: Lake, table: Table, collection: str, data: pa.Table) -> None:
    if not data.equals(lake.read_table(table, collection)) or not data.num_rows:
        lake.write_table(table, data, collection)
