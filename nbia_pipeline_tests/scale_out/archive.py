"""The archive of the test: every series of the Imaging Data Commons, and a collection whose images it has.

``python -m nbia_pipeline_tests.scale_out.archive ADDRESS PORT SERIES SECONDS`` serves it until it is stopped.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import pyarrow as pa

from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog
from nbia_pipeline.embedded.demo.catalog import demo_plans
from nbia_pipeline.embedded.demo.idc import idc_catalog
from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan, uid_of
from nbia_pipeline.embedded.phantoms.store import PhantomStore
from nbia_pipeline.embedded.server.run import serve

COLLECTION = "Scale out"
SLICES, MATRIX = 4, 64


def catalog(series: int, *, whole: bool = True) -> Catalog:
    """Return the catalog.

    Args:
        series: number of series of :data:`COLLECTION`, of four small images each.
        whole: with those of the Imaging Data Commons.
    """
    plans = [_plan(number) for number in range(series)]
    store = PhantomStore(plans)
    rows = pa.Table.from_pylist([_row(plan, store) for plan in plans], schema=CATALOG_SCHEMA)
    return Catalog(pa.concat_tables([idc_catalog().series, rows]) if whole else rows, store)


def _plan(number: int) -> SeriesPlan:
    kind, patient = demo_plans()[0], f"S-{number:04d}"
    facts = {
        **kind.row,
        "Collection": COLLECTION,
        "PatientID": patient,
        "PatientName": patient,
        "StudyInstanceUID": uid_of(COLLECTION, patient, "study"),
        "SeriesInstanceUID": uid_of(COLLECTION, patient, "series"),
    }
    geometry = replace(kind.geometry, matrix=MATRIX, slices=SLICES)
    return replace(kind, row=facts, geometry=geometry, contrasts=kind.contrasts[:1])


def _row(plan: SeriesPlan, store: PhantomStore) -> dict[str, Any]:
    instances = store.instances(plan.uid)
    size = sum(instance.size for instance in instances)
    return {**plan.row, "ImageCount": len(instances), "FileSize": size, "SOPClassUID": plan.sop_class}


def main(address: str, port: str, series: str, seconds: str, whole: str) -> None:
    """Serve the catalog; each answer begins after some seconds."""
    served = catalog(int(series), whole=whole == "whole")
    serve(served, address, int(port), ready=lambda at: print(at.url, flush=True), latency=float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
