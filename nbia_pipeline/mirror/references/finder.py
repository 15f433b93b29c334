"""Where references lead: to a series in the lake, to one that a collection lists, to one that the archive knows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import stopping
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.present import withdrawn_series
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.mirror.references.edges import STATED, STUDY, TARGET, TARGET_CLASS, UID, Held
from nbia_pipeline.mirror.series import has_files
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES
from nbia_pipeline.text import logger

log = logger(__name__)

QUESTIONS = 1000
"""So many requests are made at most, for a collection, to find series that no table lists, or that have an instance."""

# The modality of a series with instances of a class, by the class without its root (DICOM PS3.4, B.5; PS3.3,
# C.7.3.1.1.1): in which series to look for an instance whose series is not stated, as in plans and doses.
_ROOT = "1.2.840.10008.5.1.4.1.1."
_MODALITY = {
    **dict.fromkeys(("2", "2.1", "2.2"), "CT"),
    **dict.fromkeys(("4", "4.1", "4.3", "4.4"), "MR"),
    **dict.fromkeys(("128", "130", "128.1"), "PT"),
    "20": "NM",
    "66.1": "REG",
    "66.3": "REG",
    "66.4": "SEG",
    "67": "RWV",
    "481.1": "RTIMAGE",
    "481.2": "RTDOSE",
    "481.3": "RTSTRUCT",
    "481.4": "RTRECORD",
    "481.5": "RTPLAN",
    "481.8": "RTPLAN",
    "481.9": "RTRECORD",
    "88.11": "SR",
    "88.22": "SR",
    "88.33": "SR",
    "88.34": "SR",
    "88.59": "KO",
}
_INSTANCE = ["SOPInstanceUID", UID]
RECEIPT = [*Held._fields, "Status", "Bytes"]
"""The columns of a receipt that :func:`held_of` needs."""


@dataclass(frozen=True)
class Place:
    """Where a series is.

    Attributes:
        held: its receipt, if its files are in the lake.
        listed: its row of table ``series``, if it can be fetched.
    """

    held: Held | None
    listed: pa.Table | None


def rows_among(lake: Lake, table: Table, column: str, values: Collection[str], columns: list[str]) -> pa.Table:
    """Return the rows of all collections of a table whose value in a column is one of some.

    A damaged table of a collection costs its own rows only: nobody asked for that collection.

    Args:
        lake: the lake.
        table: one with partitions.
        column: name of a column of texts.
        values: what it may be.
        columns: which to return.
    """

    def of(collection: str) -> pa.Table:
        names = [name for name in columns if name != "Collection"]
        try:
            rows = lake.read_rows(table, collection, column, values, names)
        except DamagedFile as e:
            log.warning("no reference is found to lead to %s: %s", collection, e)
            return empty
        schema = empty.schema
        return pa.table([_column(rows, name, collection) for name in schema.names], schema=schema)

    empty = table.schema.empty_table().select(columns)
    calls: Iterable[Callable[[], pa.Table]] = (partial(of, c) for c in lake.collections_of(table)) if values else ()
    return pa.concat_tables([empty, *lake.side_by_side(calls)])


def _column(rows: pa.Table, name: str, collection: str) -> pa.ChunkedArray | pa.Array:
    return pa.repeat(pa.scalar(collection, pa.string()), len(rows)) if name == "Collection" else rows[name]


def held_of(receipts: pa.Table) -> dict[str, Held]:
    """Return those of some receipts whose files are in the lake, by SeriesInstanceUID."""
    rows = receipts.filter(has_files(receipts)).select(list(Held._fields)).to_pylist()
    return {row[UID]: Held(**row) for row in rows}


@dataclass
class Finder:
    """Finds series by what references state, and remembers where they are.

    Attributes:
        lake: the lake.
        client: the archive; None: only what the lake knows is found.
        lost: what no series is found for, a UID of a series or of an instance, with the series that refers to it.
        questions: how many requests may still be made.
    """

    lake: Lake
    client: NbiaClient | None = None
    lost: dict[str, str] = field(default_factory=dict)
    questions: int = QUESTIONS
    _places: dict[str, Place | None] = field(default_factory=dict)
    _of_patient: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    _members: dict[str, str] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)

    def place(self, uid: str) -> Place | None:
        """Return where a series is, None if nowhere; :meth:`locate` has looked."""
        return self._places.get(uid)

    def forget(self, uids: Iterable[str]) -> None:
        """Look again for some series when they are asked for, because they may be in the lake now."""
        for uid in uids:
            self._places.pop(uid, None)

    def locate(self, uids: Iterable[str]) -> dict[str, Held]:
        """Look for some series, and return those whose files are in the lake."""
        asked = list(dict.fromkeys(uids))
        new = [uid for uid in asked if uid not in self._places]
        if new:
            held = held_of(rows_among(self.lake, IMAGE_SERIES, UID, new, RECEIPT))
            listed = self._listed(new, held)
            for uid in new:
                row = listed.get(uid)
                self._places[uid] = Place(held.get(uid), row) if row is not None or uid in held else None
        places = ((uid, self._places[uid]) for uid in asked)
        return {uid: place.held for uid, place in places if place is not None and place.held is not None}

    def _listed(self, uids: list[str], held: Mapping[str, Held]) -> dict[str, pa.Table]:
        """Return the rows of series that can be fetched: those of the tables, or what the archive answers now."""
        rows = present(self.lake, rows_among(self.lake, SERIES, UID, uids, SERIES.schema.names))
        found = {uid: rows.slice(n, 1) for n, uid in enumerate(rows[UID].to_pylist())}
        for uid in uids:
            if self.client is not None and uid not in found and uid not in held and self._may_ask():
                answer = self.client.series(series_uid=uid).cast(SERIES.schema)
                if answer.num_rows:
                    found[uid] = answer.slice(0, 1)
        return found

    def _may_ask(self) -> bool:
        """Return whether the archive may be asked once more."""
        stopping.expect_running()
        if self.client is None or not self.questions:
            return False
        self.questions -= 1
        if not self.questions:
            log.warning("references lead to series that are not listed: the archive was asked %d times", QUESTIONS)
        return True

    def find(self, edges: pa.Table, referring: Mapping[str, Held]) -> list[tuple[str, str]]:
        """Return pairs of a series and one that it refers to.

        The series that is stated counts if it has one of the instances. Otherwise these are looked for, as those
        without a series are: in the lake, then in the series of the patient that have the modality of their class.

        Args:
            edges: as of :func:`~nbia_pipeline.mirror.references.edges.references_of`.
            referring: the series that have these references.
        """
        edges = edges.append_column("pair", pc.binary_join_element_wise(edges[UID], edges[STATED], " "))
        stated = edges.filter(pc.is_valid(edges[STATED]))
        held = self.locate(pc.unique(stated[STATED]).to_pylist())
        there = pc.is_in(stated[STATED], value_set=pa.array([u for u in self._places if self.place(u)], pa.string()))
        good = self._true(stated.filter(pc.and_(there, among(stated[STATED], held))), self._in_lake)
        away = stated.filter(pc.and_(there, pc.invert(among(stated[STATED], held))))
        good |= self._true(away, self._at_archive)
        followed = among(stated["pair"], good)
        # Other references to the same instances, without their series, lead nowhere else.
        covered = pc.is_in(edges[TARGET], value_set=stated[TARGET].filter(followed).drop_null())
        open_ = pc.invert(pc.or_(covered, pc.fill_null(among(edges["pair"], good), False)))
        rest = edges.filter(open_).sort_by([(STATED, "ascending"), (UID, "ascending")]).to_pylist()
        found = _pairs(stated.filter(followed), UID, STATED)
        return list(dict.fromkeys([*found, *self._by_instance(rest, referring)]))

    def _true(self, stated: pa.Table, known: Callable[[pa.Table], pa.Table]) -> set[str]:
        """Return which pairs of a series and the one that it states are true as far as is known.

        That is if one of the named instances is in the stated series; where its instances are not known, or none is
        named, the statement counts.
        """
        if not stated.num_rows:
            return set()
        of = known(stated)
        at = pc.index_in(stated[TARGET], value_set=of["SOPInstanceUID"])
        where = pc.if_else(pc.is_valid(at), pc.take(of[UID], at), None)
        true = pc.fill_null(pc.equal(where, stated[STATED]), False)
        unknown = pc.invert(pc.is_in(stated[STATED], value_set=of[UID].combine_chunks()))
        believed = pc.or_(pc.is_null(stated[TARGET]), pc.and_(unknown, pc.is_null(where)))
        return set(stated["pair"].filter(pc.or_(true, believed)).to_pylist())

    def _in_lake(self, stated: pa.Table) -> pa.Table:
        uids = pc.unique(stated[STATED]).to_pylist()
        return rows_among(self.lake, INSTANCES, UID, uids, _INSTANCE)

    def _at_archive(self, stated: pa.Table) -> pa.Table:
        """Return where the instances are that the lake has, and those of the series that the archive is asked for."""
        named = pc.unique(stated[TARGET]).drop_null().to_pylist()
        rows = rows_among(self.lake, INSTANCES, "SOPInstanceUID", named, _INSTANCE)
        self._list_members(pc.unique(stated[STATED]).to_pylist())
        known = {**self._members, **dict(zip(*(rows[name].to_pylist() for name in _INSTANCE), strict=True))}
        return pa.table([pa.array(known, pa.string()), pa.array(known.values(), pa.string())], _INSTANCE)

    def _by_instance(
        self, edges: list[dict[str, str | None]], referring: Mapping[str, Held]
    ) -> Iterator[tuple[str, str]]:
        wanted = {str(edge[TARGET]) for edge in edges if edge[TARGET]}
        rows = rows_among(self.lake, INSTANCES, "SOPInstanceUID", wanted, _INSTANCE)
        series = dict(zip(*(rows[name].to_pylist() for name in _INSTANCE), strict=True))
        lost: set[str] = set()
        for edge in edges:
            referrer, target = str(edge[UID]), edge[TARGET]
            uid = series.get(str(target)) or (self._look_for(edge, referring[referrer]) if target else None)
            self.locate([uid] if uid else [])
            if uid is not None and self.place(uid) is not None:
                yield referrer, uid
            elif target not in lost:
                self.lost.setdefault(str(edge[STATED] or target), referrer)
                lost.add(str(target))

    def _look_for(self, edge: Mapping[str, str | None], referrer: Held) -> str | None:
        """Ask the archive for the instances of series that may have the one that is named; return the one that has."""
        target = str(edge[TARGET])
        near = (edge[STUDY], referrer.StudyInstanceUID)
        series = self._alike(referrer.PatientID, _MODALITY.get(str(edge[TARGET_CLASS]).removeprefix(_ROOT)))
        for _, uid in sorted(series, key=lambda one: one[0] not in near):
            if target in self._members:
                break
            self._list_members([uid])
        return self._members.get(target)

    def _list_members(self, uids: Iterable[str]) -> None:
        """Ask the archive for the instances of some series that it was not asked for yet."""
        new = [uid for uid in uids if uid not in self._asked and self._may_ask()]
        if not new or self.client is None:
            return
        self._asked.update(new)
        most = self.client.max_in_flight
        with stopping.threads(most, "nbia-references") as pool:
            calls = (partial(self.client.sop_instance_uids, uid) for uid in new)
            for uid, members in zip(new, stopping.in_order(pool, calls, most), strict=True):
                self._members.update(dict.fromkeys(members, uid))

    def _alike(self, patient: str, modality: str | None) -> list[tuple[str, str]]:
        """Return study and UID of the series of a patient that have a modality; none without the archive."""
        if modality is None or self.client is None:
            return []
        if patient not in self._of_patient:
            columns = [UID, "StudyInstanceUID", "Modality", "Collection"]
            rows = rows_among(self.lake, SERIES, "PatientID", [patient], columns)
            self._of_patient[patient] = present(self.lake, rows).to_pylist()
        rows = self._of_patient[patient]
        return [(row["StudyInstanceUID"], row[UID]) for row in rows if row["Modality"] == modality]


def present(lake: Lake, rows: pa.Table) -> pa.Table:
    """Return rows of ``series`` without those whose withdrawal is confirmed."""
    gone = [
        uid for collection in pc.unique(rows["Collection"]).to_pylist() for uid in withdrawn_series(lake, collection)
    ]
    return rows.filter(pc.invert(among(rows[UID], gone))) if gone else rows


def _pairs(rows: pa.Table, *columns: str) -> list[tuple[str, str]]:
    found = rows.group_by(list(columns)).aggregate([])
    return list(zip(*(found[name].to_pylist() for name in columns), strict=True))
