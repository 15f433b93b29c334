"""The demo catalog: five collections of phantoms, with every oddity that real collections have.

Its contents are in :mod:`nbia_pipeline.embedded.demo.tables`. The DOIs carry the prefix that DataCite
keeps for tests (10.5072).
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import replace
from typing import Any

import pyarrow as pa

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, VISIBLE, Account, Catalog, CollectionDescription
from nbia_pipeline.embedded.demo.tables import (
    BODY_PARTS,
    COLLECTIONS,
    DEFAULTS,
    MODELS,
    PROTOCOLS,
    RESTRICTED,
    CollectionSpec,
    Place,
    SeriesSpec,
    StudySpec,
)
from nbia_pipeline.embedded.phantoms.anatomy import ANATOMIES, Geometry
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan, uid_of
from nbia_pipeline.embedded.phantoms.store import PhantomStore

MEMBER = "demo_member"
MEMBER_PASSWORD = "demo-member-password"  # noqa: S105 - published on purpose, it opens phantoms only

CART = "Demo cart"
"""The shared cart: the first series of every collection, and the hidden ones."""

LARGEST_MATRIX = 512
_EDITED_MS = 1_700_000_000_000


def scaled_geometry(scale: int, matrix: int, slices: int, field_of_view: float, extent: float, plane: str) -> Geometry:
    """Return a stack at a scale: the matrix grows up to 512, and what is left of the scale multiplies the slices.

    The other arguments are those of :class:`~nbia_pipeline.embedded.phantoms.anatomy.Geometry` at scale 1.
    """
    wanted = matrix * scale
    slices *= max(1, wanted // LARGEST_MATRIX)
    return Geometry(min(wanted, LARGEST_MATRIX), slices, field_of_view, extent, plane)


def _doi(collection: CollectionSpec) -> str:
    return f"https://doi.org/10.5072/{re.sub('[^a-z0-9.]+', '-', collection.name.lower()).strip('-')}"


def _columns(collection: CollectionSpec, study: StudySpec, number: int) -> dict[str, Any]:
    """Return the row of series `number` (from 1) of a study, but for counts, sizes and spacings."""
    series = study.series[number - 1]
    key = (collection.name, study.patient_id, study.day)
    released = dt.datetime.fromisoformat(study.released)
    doi = _doi(collection)
    return {
        **DEFAULTS,
        "SeriesInstanceUID": uid_of(*key, number),
        "StudyInstanceUID": uid_of(*key),
        "PatientID": study.patient_id,
        "PatientName": study.patient_id,
        "Collection": collection.name,
        "StudyDate": dt.date.fromisoformat(study.day),
        "StudyDescription": study.description,
        "StudyID": study.day.replace("-", "")[2:],
        "SeriesDate": dt.date.fromisoformat(study.day),
        "SeriesDescription": series.description,
        "SeriesNumber": number,
        "Modality": series.modality,
        "ProtocolName": PROTOCOLS.get(series.modality),
        "BodyPartExamined": BODY_PARTS[collection.anatomy],
        "ManufacturerModelName": MODELS[series.modality],
        "TimeStamp": released - dt.timedelta(days=9) + dt.timedelta(hours=14, minutes=7 * number, seconds=23),
        "DateReleased": released,
        "LicenseName": collection.license[0],
        "LicenseURI": collection.license[1],
        "CollectionURI": doi if series.contrasts else f"{doi}.derived",
        "AnnotationSize": sum(len(text.encode()) for text in series.annotations.values()),
        **collection.columns,
        **study.columns,
        **series.columns,
    }


def _drawn_plan(
    series: SeriesSpec, row: dict[str, Any], sources: list[SeriesPlan], study: StudySpec, anatomy: str
) -> SeriesPlan:
    """Return the plan of what describes or refers to `sources`; it lies in the frame of reference of the first."""
    source, *others = sources
    if series.flaw == "unknown images":
        source = replace(source, row={**source.row, "SeriesInstanceUID": uid_of(row["SeriesInstanceUID"], "unknown")})
    frame = source.frame_of_reference
    return SeriesPlan(
        row, anatomy, study.growth, source.geometry, (), frame, series.numbered, source, tuple(others), series.flaw
    )


def _add_plans(plans: dict[Place, SeriesPlan], collection: CollectionSpec, study: StudySpec, scale: int) -> None:
    """Add the plans of a study to `plans`; what its series refer to is among them already."""

    def place(number: int) -> Place:
        return collection.name, study.patient_id, study.day, number

    frame = uid_of(collection.name, study.patient_id, study.day, "frame of reference")
    for number, series in enumerate(study.series, 1):
        anatomy, row = series.anatomy or collection.anatomy, _columns(collection, study, number)
        if not series.contrasts:
            sources = [plans[place(one) if isinstance(one, int) else one] for one in series.sources]
            plans[place(number)] = _drawn_plan(series, row, sources, study, anatomy)
            continue
        kind = ANATOMIES[anatomy]
        # Other planes than the axial one cut the whole width of the body.
        extent = kind.extent if series.plane == "axial" else kind.field_of_view * 0.6
        geometry = scaled_geometry(scale, series.matrix, series.slices, kind.field_of_view, extent, series.plane)
        contrasts = series.contrasts
        plans[place(number)] = SeriesPlan(row, anatomy, study.growth, geometry, contrasts, frame, series.numbered)


def demo_plans(scale: int = 1) -> list[SeriesPlan]:
    """Return the plans of all series of the demo, in the order of the catalog; see :func:`demo_catalog`."""
    if scale < 1:
        raise ValueError(f"the scale must be 1 or more, not {scale}")
    plans: dict[Place, SeriesPlan] = {}
    for collection in COLLECTIONS:
        for study in collection.studies:
            _add_plans(plans, collection, study, scale)
    return list(plans.values())


def _cart(plans: list[SeriesPlan]) -> tuple[str, ...]:
    """Return the first series of every collection, the restricted one included, and all that are hidden."""
    first = {plan.row["Collection"]: plan.uid for plan in reversed(plans)}
    hidden = [plan.uid for plan in plans if plan.row["Visibility"] != VISIBLE]
    return (*(first[collection.name] for collection in COLLECTIONS), *hidden)


def _annotations() -> dict[str, dict[str, bytes]]:
    """Return the annotation files by the UID of their series."""
    return {
        uid_of(collection.name, study.patient_id, study.day, number): {
            name: text.encode() for name, text in series.annotations.items()
        }
        for collection in COLLECTIONS
        for study in collection.studies
        for number, series in enumerate(study.series, 1)
        if series.annotations
    }


def demo_catalog(scale: int = 1) -> Catalog:
    """Return the demo: 5 collections (one of them restricted), 12 patients, 43 series, 14 MB at scale 1.

    The stacks cover the same part of the body at every scale (see :func:`scaled_geometry`): an image of 128 pixels
    has 512 at scale 4, and at scale 100 25 times as many slices. UIDs and rows are the same, but for counts, sizes,
    spacings and the additional instances. What is drawn stays a single file, with more frames.

    Args:
        scale: 1 or more; 4 makes 206 MB, 100 makes 5.3 GB. Files are made when they are read.

    Raises:
        ValueError: the scale is below 1.
    """
    plans = demo_plans(scale)
    store = PhantomStore(plans)
    return Catalog(
        series=pa.Table.from_pylist([{**plan.row, **store.columns(plan.uid)} for plan in plans], schema=CATALOG_SCHEMA),
        images=store,
        restricted=frozenset({RESTRICTED}),
        accounts={MEMBER: Account(MEMBER_PASSWORD, frozenset({RESTRICTED}))},
        descriptions={
            c.name: CollectionDescription(
                c.name,
                f"<p><strong>{c.title}.</strong> Synthetic images made for demonstrations &amp; tests.</p>",
                _doi(c),
                _EDITED_MS + 86_400_000 * number,
            )
            for number, c in enumerate(COLLECTIONS)
        },
        carts={CART: _cart(plans)},
        annotations=_annotations(),
    )
