"""The facts of a catalogue, arranged for questions: a slice per collection, rights and visibility applied."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.catalogue import VISIBLE, Catalogue

DOWNLOADABLE = 12
"""Visibility code that some endpoints accept besides :data:`VISIBLE`."""

ANY_VISIBILITY: frozenset[int] = frozenset()
"""Stands for no filter on the visibility."""

ONLY_VISIBLE = frozenset({VISIBLE})
"""The visibility that nearly every endpoint sees."""

# Server: what an unset column reads as.
_DEFAULTS = {"Phantom": "NO", "SpeciesCode": "337915000", "SpeciesDescription": "Homo sapiens"}


@dataclass(frozen=True)
class _State:
    """One version of the facts: all of them, sorted by collection, and where each collection lies."""

    version: int
    table: pa.Table
    slices: dict[str, pa.Table]


class Holdings:
    """What the archive holds, by collection.

    Attributes:
        catalogue: the plain data behind it.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        """Arrange the facts of `catalogue`."""
        self.catalogue = catalogue
        self._lock = threading.Lock()
        self._state = _arranged(catalogue.series, version=1)
        self._series_of_instance: tuple[int, dict[str, str]] | None = None

    @property
    def version(self) -> int:
        """Number of the present state; rises with every :meth:`refresh`."""
        return self._state.version

    def refresh(self) -> None:
        """Take in changes of the catalogue; answers made from earlier versions are no longer valid."""
        with self._lock:
            self._state = _arranged(self.catalogue.series, self._state.version + 1)

    def collections(self) -> list[str]:
        """Return the names of all collections, sorted."""
        return list(self._state.slices)

    def select(
        self,
        rights: Collection[str] | None,
        collection: str | None = None,
        *,
        ignore_case: bool = True,
        visibility: frozenset[int] = ONLY_VISIBLE,
    ) -> pa.Table:
        """Return the series that a caller may see.

        Args:
            rights: restricted collections that the caller holds; None: rights are not checked.
            collection: name to keep, or None for all.
            ignore_case: compare the name without regard to case.
            visibility: codes to keep; empty for all.

        Returns:
            Rows of schema FACTS, without copying where nothing is hidden.
        """
        state = self._state
        parts = [
            _with_visibility(state.slices[name], visibility)
            for name in _named(state.slices, collection, ignore_case)
            if rights is None or name not in self.catalogue.restricted or name in rights
        ]
        return pa.concat_tables(parts) if parts else state.table.slice(0, 0)

    def one_series(
        self,
        uid: str,
        rights: Collection[str] | None,
        visibility: frozenset[int] = ONLY_VISIBLE,
    ) -> pa.Table:
        """Return the row of one series, or no row if it is unknown, hidden or not permitted."""
        rows = self._state.table.filter(pc.equal(self._state.table["SeriesInstanceUID"], uid))
        restricted = set(self.catalogue.restricted) - set(rights or ())
        if rights is not None and restricted:
            rows = rows.filter(pc.invert(pc.is_in(rows["Collection"], pa.array(sorted(restricted), pa.string()))))
        return _with_visibility(rows, visibility)

    def series_of_instance(self, sop_uid: str) -> str | None:
        """Return the series that holds an instance, or None; the first call reads every series' list."""
        with self._lock:
            if self._series_of_instance is None or self._series_of_instance[0] != self.version:
                self._series_of_instance = self.version, dict(self._instance_pairs())
            return self._series_of_instance[1].get(sop_uid)

    def _instance_pairs(self) -> Iterator[tuple[str, str]]:
        images = self.catalogue.images
        if images is not None:
            for series_uid in self._state.table["SeriesInstanceUID"].to_pylist():
                for instance in images.instances(series_uid):
                    yield instance.sop_instance_uid, series_uid


def _arranged(series: pa.Table, version: int) -> _State:
    filled = series
    for name, default in _DEFAULTS.items():
        if series[name].null_count:
            filled = filled.set_column(filled.schema.get_field_index(name), name, pc.fill_null(series[name], default))
    names = pc.unique(filled["Collection"].drop_null()).to_pylist()
    slices = {name: _slice_of(filled, name) for name in sorted(names)}
    return _State(version, filled, slices)


def _slice_of(table: pa.Table, name: str) -> pa.Table:
    """Return the rows of one collection: a view where they lie together, else a copy."""
    mask = pc.equal(table["Collection"], name)
    first, rows = pc.index(mask, True).as_py(), pc.sum(mask).as_py()
    together = table.slice(first, rows)
    if pc.all(pc.equal(together["Collection"], name)).as_py():
        return together
    # Rows from all over the table would stay in as many small pieces, each with its cost in every question.
    return table.filter(mask).combine_chunks()


def _named(slices: dict[str, pa.Table], wanted: str | None, ignore_case: bool) -> list[str]:
    if wanted is None:
        return list(slices)
    if ignore_case:
        return [name for name in slices if name.casefold() == wanted.casefold()]
    return [name for name in slices if name == wanted]


def _with_visibility(rows: pa.Table, codes: frozenset[int]) -> pa.Table:
    if not codes:
        return rows
    mask = pc.is_in(rows["Visibility"], pa.array(sorted(codes), pa.int64()))
    return rows if pc.all(mask, min_count=0).as_py() else rows.filter(mask)
