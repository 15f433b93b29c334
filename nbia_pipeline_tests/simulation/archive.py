"""An archive of three collections with eight series, each of two small images: a year of it costs little."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pyarrow as pa

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog
from nbia_pipeline.embedded.demo.catalog import demo_plans
from nbia_pipeline.embedded.phantoms.anatomy import Geometry
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan
from nbia_pipeline.embedded.phantoms.store import PhantomStore

START = datetime(2026, 1, 1)  # noqa: DTZ001 - the tables state no zone

FIRST = {"Alpha": ("a1", "a2", "a3"), "Beta CT": ("b1", "b2", "b3"), "Gamma.v2": ("g1", "g2")}
"""The series of the first day, by the names that scripts call them."""

MIRRORED = ("[ABDE]*",)
"""The collections whose images are mirrored: all but those that begin with another letter."""

_GEOMETRY = Geometry(matrix=16, slices=2, field_of_view=320.0, extent=80.0)


def first_uids() -> dict[str, str]:
    """Return the SeriesInstanceUID of each series of the first day."""
    names = [name for series in FIRST.values() for name in series]
    return {name: plan.uid for name, plan in zip(names, _pictures(), strict=True)}


def small_catalog() -> Catalog:
    """Return the archive as it is on the first day: everything was released long ago."""
    plans = []
    pictures = iter(_pictures())
    for collection, series in FIRST.items():
        for number, name in enumerate(series):
            released = START - timedelta(days=60 + number)
            facts = {
                "Collection": collection,
                "PatientID": name.upper(),
                "PatientName": name.upper(),
                "DateReleased": released,
                "TimeStamp": released - timedelta(days=3, seconds=-number),
            }
            plan = next(pictures)
            plans.append(replace(plan, row={**plan.row, **facts}, geometry=_GEOMETRY))
    store = PhantomStore(plans)
    rows = [_row(plan, store) for plan in plans]
    return Catalog(series=pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA), images=store)


def _pictures() -> list[SeriesPlan]:
    """Return as many plans of single stacks as there are series."""
    count = sum(map(len, FIRST.values()))
    fit = [p for p in demo_plans() if p.source is None and p.row["Visibility"] == 1 and len(p.contrasts) == 1]
    return fit[:count]


def _row(plan: SeriesPlan, store: PhantomStore) -> dict[str, object]:
    instances = store.instances(plan.uid)
    counted = {"ImageCount": len(instances), "FileSize": sum(i.size for i in instances)}
    return {**plan.row, **counted, "SOPClassUID": plan.sop_class}
