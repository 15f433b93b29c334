"""What the archive holds as a whole: collections, modalities and the like, their counts, licences, DOIs."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from nbia_pipeline.archive.calls import Argument, Caller
from nbia_pipeline.schema.arrow import first_of_each

# Server: what the counts call a value that is not set.
_NULL_NAMES = {"modality_counts": "", "body_part_counts": "NOT SPECIFIED", "manufacturer_counts": ""}


class ValueCalls(Caller):
    """The calls that answer for the whole archive, or for what a few filters leave of it."""

    def modalities(self, collection: str | None = None, *, body_part: str | None = None) -> list[str | None]:
        """Return the modalities in use, in the server's order; None stands for series without one.

        v2 gives them as stored, v4 upper-cased (server).

        Args:
            collection: only of this collection, in any case.
            body_part: only with this body part, in any case.
        """
        return self._values("modality_values", collection=collection, body_part=body_part)

    def body_parts(self, collection: str | None = None, *, modality: str | None = None) -> list[str | None]:
        """Return the body parts in use, upper-cased (server); None stands for series without one.

        Args:
            collection: only of this collection, in any case.
            modality: only with this modality, in any case.
        """
        return self._values("body_part_values", collection=collection, modality=modality)

    def manufacturers(
        self, collection: str | None = None, *, modality: str | None = None, body_part: str | None = None
    ) -> list[str | None]:
        """Return the manufacturers in use; None stands for series without one.

        v2 gives them as stored, so that one may come in several spellings; v4 upper-cased (server).

        Args:
            collection: only of this collection, in any case.
            modality: only with this modality, in any case.
            body_part: only with this body part, in any case.
        """
        return self._values("manufacturer_values", collection=collection, modality=modality, body_part=body_part)

    def collection_counts(self) -> dict[str, int]:
        """Return the number of patients by collection."""
        counts = self._list("collection_counts")
        return dict(zip(counts["criteria"].to_pylist(), counts["count"].to_pylist(), strict=True))

    def modality_counts(
        self, collection: str | None = None, *, body_part: str | None = None
    ) -> dict[str | None, int | None]:
        """Return the number of patients by modality; for the arguments see :meth:`modalities`."""
        return self._counts("modality_counts", collection, body_part=body_part)

    def body_part_counts(
        self, collection: str | None = None, *, modality: str | None = None
    ) -> dict[str | None, int | None]:
        """Return the number of patients by body part; for the arguments see :meth:`body_parts`."""
        return self._counts("body_part_counts", collection, modality=modality)

    def manufacturer_counts(
        self, collection: str | None = None, *, modality: str | None = None, body_part: str | None = None
    ) -> dict[str | None, int | None]:
        """Return the number of patients by manufacturer; for the arguments see :meth:`manufacturers`."""
        return self._counts("manufacturer_counts", collection, modality=modality, body_part=body_part)

    def modality_values(self) -> pa.Table:
        """Return the modalities with the number of patients of each: table ``modalities``."""
        return self._with_counts("modality_values", "modality_counts")

    def body_part_values(self) -> pa.Table:
        """Return the body parts, upper-cased by the server, with patients: table ``body_parts``."""
        return self._with_counts("body_part_values", "body_part_counts")

    def manufacturer_values(self) -> pa.Table:
        """Return the manufacturers with the number of patients of each: table ``manufacturers``."""
        return self._with_counts("manufacturer_values", "manufacturer_counts")

    def collection_description(self, collection: str) -> pa.Table:
        """Return the description of one collection, in its exact spelling: no row, or one, or several."""
        return self._list("collection_descriptions", collection=collection)

    def licenses(self) -> pa.Table:
        """Return the licences that the archive knows: getLicenses, which asks nobody for a token (server).

        Columns: ``LicenseName`` (long), ``LicenseID``, ``LicenseShortName``, ``LicenseURI``, ``LicenseText``,
        ``CommercialUse`` (``YES`` or ``NO``).
        """
        return self._list("licences")

    def collection_or_series_for_doi(self, doi: str, *, by_series: bool = False) -> pa.Table:
        """Return what a DOI stands for: collections, or its series one by one.

        Columns: ``Collection``, ``SeriesInstanceUID``, ``ThirdPartyAnalysis``; what was not asked for is null. A
        collection has two rows where some of its series are by third parties.
        Hidden series are listed too (server): a row is no promise that it can be downloaded.

        Args:
            doi: the address as the archive stores it, like ``https://doi.org/10.7937/...``: the column
                ``CollectionURI`` of table ``series``.
            by_series: a row per series rather than per collection.
        """
        table = self._list("collection_or_series_for_doi", doi=doi, per="series" if by_series else "collection")
        return first_of_each(table, *table.schema.names)

    def _values(self, name: str, **filters: str | None) -> list[str | None]:
        table = self._list(name, **filters)
        return list(table[self._column(name)].to_pylist())

    def _counts(self, name: str, collection: str | None, **filters: Argument) -> dict[str | None, int | None]:
        counted = self._list(name, collection=collection, **filters)
        if collection and not counted.num_rows:
            # Server: the unversioned counts compare the collection's case, the lists do not.
            folded = collection.casefold()
            spelled = next((c for c in self.collection_values() if c.casefold() == folded), collection)
            counted = self._list(name, collection=spelled, **filters)
        names = [None if v in (None, _NULL_NAMES[name]) else v for v in counted["criteria"].to_pylist()]
        return dict(zip(names, counted["count"].to_pylist(), strict=True))

    def _with_counts(self, values: str, counts: str) -> pa.Table:
        """Join a list of values with its counts; the server counts null under a name of its own."""
        table = self._list(values)
        counted = self._list(counts)
        patients = _by_name(table[self._column(values)].to_pylist(), counted, _NULL_NAMES[counts])
        return table.set_column(
            table.schema.get_field_index("PatientCount"),
            table.schema.field("PatientCount"),
            pa.array([patients.get(n) for n in table[self._column(values)].to_pylist()], pa.int64()),
        )

    def _column(self, values: str) -> str:
        """Return the column that a list of values fills; each has one key only."""
        shape = self._dialect.endpoint(values).shape
        assert shape is not None  # noqa: S101 - lists have one
        return shape.keys[0].name


def _by_name(names: Sequence[str | None], counted: pa.Table, null_as: str) -> dict[str | None, int | None]:
    """Map each of `names` to its count.

    v4 upper-cases the names but not what it counts (server). A name for several spellings gets no count: a
    patient may be counted under each.
    """
    known = set(names)
    found: dict[str | None, list[int | None]] = {}
    for criteria, count in zip(counted["criteria"].to_pylist(), counted["count"].to_pylist(), strict=True):
        name = None if criteria in (None, null_as) else criteria
        found.setdefault(name if name is None or name in known else name.upper(), []).append(count)
    return {name: counts[0] for name, counts in found.items() if len(counts) == 1}
