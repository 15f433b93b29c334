"""The rows of a catalog, arranged for queries: a slice per collection, filtered by rights and visibility."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.catalog.model import VISIBLE, Catalog
from nbia_pipeline.schema.arrow import with_column

DOWNLOADABLE = 12
"""Visibility code that some endpoints accept besides :data:`VISIBLE`."""

ANY_VISIBILITY: frozenset[int] = frozenset()
"""No filter on the visibility."""

ONLY_VISIBLE = frozenset({VISIBLE})
"""The filter of nearly every endpoint."""

MOST_PIECES = 32
"""Chunks of a collection's rows above which a change joins them."""

DEFAULTS = {"Phantom": "NO", "SpeciesCode": "337915000", "SpeciesDescription": "Homo sapiens"}
"""Server: what an unset column reads as."""


@dataclass(frozen=True)
class _State:
    """One version of the holdings.

    Attributes:
        catalog: the plain data.
        slices: the rows of each collection by its name, sorted.
        serial: rises with every change.
        epoch: serial of the last :meth:`Holdings.refresh`.
        changed: serial of the last change of a collection since then.
        contents: serial of the last replacement of a series' files since then.
    """

    catalog: Catalog
    slices: dict[str, pa.Table]
    serial: int
    epoch: int
    changed: Mapping[str, int]
    contents: Mapping[str, int]


class Holdings:
    """The series of the archive by collection, and their files."""

    def __init__(self, catalog: Catalog) -> None:
        """Arrange the rows of `catalog`."""
        self._lock = threading.Lock()
        self._state = _arranged(catalog, serial=1)
        self._series_of_instance: tuple[int, dict[str, str]] = (0, {})

    @property
    def catalog(self) -> Catalog:
        """The plain data of the present state."""
        return self._state.catalog

    def stamp(self, collection: str | None) -> object:
        """Return a value that changes whenever answers about a collection may change; None: about any of them."""
        state = self._state
        if collection is None:
            return state.serial
        return state.epoch, [state.changed.get(n) for n in _named(state.slices, collection, ignore_case=True)]

    def content_stamp(self, uid: str) -> str:
        """Return a value that changes whenever the files of a series do."""
        state = self._state
        return f"{state.epoch}.{state.contents.get(uid, 0)}"

    def refresh(self, catalog: Catalog | None = None) -> None:
        """Take in changes of the catalog, or another one; all stamps change."""
        with self._lock:
            self._state = _arranged(catalog or self._state.catalog, self._state.serial + 1)

    def change(self, slices: Mapping[str, pa.Table], contents: Iterable[str] = (), **fields: Any) -> None:
        """Replace the rows of some collections, which are removed without any; all others stay as they are.

        `contents` are the series whose files have changed, `fields` new values of other fields of the catalog.
        """
        with self._lock:
            old, serial = self._state, self._state.serial + 1
            kept = {name: rows for name, rows in sorted({**old.slices, **slices}.items()) if rows.num_rows}
            for name, rows in kept.items():
                if rows["SeriesInstanceUID"].num_chunks > MOST_PIECES:
                    # Each of the pieces costs time in every query.
                    kept[name] = rows.combine_chunks()
            series = pa.concat_tables(kept.values()) if kept else old.catalog.series.slice(0, 0)
            self._state = _State(
                replace(old.catalog, series=series, **fields),
                kept,
                serial,
                old.epoch,
                {**old.changed, **dict.fromkeys(slices, serial)},
                {**old.contents, **dict.fromkeys(contents, serial)},
            )

    def collections(self) -> list[str]:
        """Return the names of all collections, sorted."""
        return list(self._state.slices)

    def rows_of(self, collection: str) -> pa.Table:
        """Return all series of the collection of exactly that name; no rows if there is none."""
        state = self._state
        return state.slices.get(collection, state.catalog.series.slice(0, 0))

    def select(
        self,
        rights: Collection[str] | None,
        collection: str | None = None,
        *,
        ignore_case: bool = True,
        visibility: frozenset[int] = ONLY_VISIBLE,
    ) -> pa.Table:
        """Return the series that a caller may see, without copying where nothing is hidden.

        Args:
            rights: restricted collections that the caller may see; None: rights are not checked.
            collection: name to keep, or None for all.
            ignore_case: compare the name without regard to case.
            visibility: codes to keep; empty for all.
        """
        state = self._state
        parts = [
            _with_visibility(state.slices[name], visibility)
            for name in _named(state.slices, collection, ignore_case)
            if rights is None or name not in state.catalog.restricted or name in rights
        ]
        return pa.concat_tables(parts) if parts else state.catalog.series.slice(0, 0)

    def among(
        self, uids: Iterable[str], rights: Collection[str] | None, visibility: frozenset[int] = ONLY_VISIBLE
    ) -> pa.Table:
        """Return the rows of those series that the caller may see, in the order of :meth:`select`."""
        rows = self.select(rights, visibility=ANY_VISIBILITY)
        wanted = rows.filter(pc.is_in(rows["SeriesInstanceUID"], pa.array(sorted(set(uids)), pa.string())))
        return _with_visibility(wanted, visibility)

    def series_of_instance(self, sop_uid: str) -> str | None:
        """Return the series of an instance, or None; the first call after a change lists all instances."""
        with self._lock:
            state, images = self._state, self._state.catalog.images
            if images is not None and self._series_of_instance[0] != state.serial:
                uids = state.catalog.series["SeriesInstanceUID"].to_pylist()
                known = {i.sop_instance_uid: uid for uid in uids for i in images.instances(uid)}
                self._series_of_instance = state.serial, known
            return self._series_of_instance[1].get(sop_uid)


def _arranged(catalog: Catalog, serial: int) -> _State:
    filled = filled_in(catalog.series)
    names = pc.unique(filled["Collection"].drop_null()).to_pylist()
    slices = {name: _slice_of(filled, name) for name in sorted(names)}
    return _State(catalog, slices, serial, serial, {}, {})


def filled_in(series: pa.Table) -> pa.Table:
    """Return rows with what the server answers where nothing is stored."""
    for name, default in DEFAULTS.items():
        if series[name].null_count:
            series = with_column(series, name, pc.fill_null(series[name], default))
    return series


def _slice_of(table: pa.Table, name: str) -> pa.Table:
    """Return the rows of one collection: a view where they are contiguous, else a copy."""
    mask = pc.equal(table["Collection"], name)
    first, rows = pc.index(mask, True).as_py(), pc.sum(mask).as_py()
    together = table.slice(first, rows)
    if pc.all(pc.equal(together["Collection"], name)).as_py():
        return together
    # Otherwise rows from all over the table would stay in many small chunks.
    return table.filter(mask).combine_chunks()


def _named(slices: dict[str, pa.Table], wanted: str | None, ignore_case: bool) -> list[str]:
    spelled = str.casefold if ignore_case else str
    return [name for name in slices if wanted is None or spelled(name) == spelled(wanted)]


def _with_visibility(rows: pa.Table, codes: frozenset[int]) -> pa.Table:
    if not codes:
        return rows
    mask = pc.is_in(rows["Visibility"], pa.array(sorted(codes), pa.int64()))
    return rows if pc.all(mask, min_count=0).as_py() else rows.filter(mask)
