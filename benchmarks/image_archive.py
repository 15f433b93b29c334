"""The archive of the image benchmarks: collections of large and of small series, and of the road, made of phantoms.

``python benchmarks/image_archive.py JSON`` serves it until it is stopped; the JSON has the numbers of
:func:`benchmark_catalogue`. It prints its addresses and its process id, as JSON in one line.

Images are rendered and deflated when they are sent for the first time, which costs half a minute of processor time
per GB, and copied from then on; those of the road are put together (:mod:`road`). :func:`warmed` sends everything for
the first time and keeps what the archive says of it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import urllib.parse
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbia_pipeline.embedded.catalog.model import Catalog, ImageStore
    from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan

LARGE = "Large series"
SMALL = "Small series"
ROAD = "Road"
LARGE_MATRIX = 512
SMALL_MATRIX = 64
SMALL_SLICES = 4

_SHELF_BYTES = 100_000_000_000
_MODALITIES = ("CT", "MR", "PT")


def benchmark_catalogue(large: int, slices: int, small: int, road: int) -> Catalog:
    """Return a catalogue of three collections.

    Args:
        large: series of the first one, of images of 512 x 512.
        slices: slices of each of them.
        small: series of the second one, of four images of 64 x 64.
        road: series of the third one, of 20 to 60 MB on the wire.
    """
    import pyarrow as pa
    from road import RoadStore

    from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, Catalog
    from nbia_pipeline.embedded.phantoms.store import PhantomStore

    drawn = [*_plans(LARGE, large, LARGE_MATRIX, slices), *_plans(SMALL, small, SMALL_MATRIX, SMALL_SLICES)]
    put_together = _plans(ROAD, road, LARGE_MATRIX, slices)
    store = RoadStore(put_together, behind=PhantomStore(drawn))
    rows = [_row(plan, store) for plan in (*drawn, *put_together)]
    return Catalog(pa.Table.from_pylist(rows, schema=CATALOG_SCHEMA), store)


def _plans(collection: str, count: int, matrix: int, slices: int) -> list[SeriesPlan]:
    """Return plans of series: the demo's of each modality in turn, every one of another patient."""
    from nbia_pipeline.embedded.demo.catalog import demo_plans
    from nbia_pipeline.embedded.phantoms.dicom_files import uid_of

    kinds = [next(p for p in demo_plans() if p.modality == modality) for modality in _MODALITIES]
    made = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        patient = f"B-{number:05d}"
        facts = {
            **kind.row,
            "Collection": collection,
            "PatientID": patient,
            "PatientName": patient,
            "StudyInstanceUID": uid_of(collection, patient, "study"),
            "SeriesInstanceUID": uid_of(collection, patient, "series"),
        }
        geometry = replace(kind.geometry, matrix=matrix, slices=slices)
        made.append(replace(kind, row=facts, geometry=geometry, contrasts=kind.contrasts[:1]))
    return made


def _row(plan: SeriesPlan, store: ImageStore) -> dict[str, Any]:
    instances = store.instances(plan.uid)
    size = sum(instance.size for instance in instances)
    return {**plan.row, "ImageCount": len(instances), "FileSize": size, "SOPClassUID": plan.sop_class}


# --- what the archive says of its files


@dataclass(frozen=True)
class Facts:
    """What must be on disk when a collection has arrived.

    Attributes:
        collection: its name.
        uids: SeriesInstanceUID of each series.
        digests: MD5 of each file, sorted.
        bytes: size of all files.
        wire_bytes: size of the zips.
    """

    collection: str
    uids: list[str]
    digests: list[str]
    bytes: int
    wire_bytes: int


def warmed(url: str, collection: str) -> Facts:
    """Have every zip of a collection sent once, and return what the archive lists: rows, digests, sizes.

    Neither our client nor another one is asked: this is what all of them are compared with.
    """
    named = urllib.parse.urlencode({"Collection": collection, "format": "JSON"})
    rows = json.loads(_get(f"{url}/services/v4/getSeries?{named}"))
    uids = [row["SeriesInstanceUID"] for row in rows]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        zips = list(pool.map(lambda uid: _digests_of(url, uid), uids))
    digests = sorted(digest for listed, _ in zips for digest in listed)
    if len(digests) != sum(row["ImageCount"] for row in rows):
        raise SystemExit(f"{collection}: the archive lists {len(digests)} digests, its series have other counts")
    return Facts(collection, uids, digests, sum(row["FileSize"] for row in rows), sum(size for _, size in zips))


def _digests_of(url: str, uid: str) -> tuple[list[str], int]:
    """Return the digests that the archive lists of a series, and the size of its zip."""
    zipped = _get(f"{url}/services/v1/getImageWithMD5Hash?SeriesInstanceUID={uid}")
    with zipfile.ZipFile(io.BytesIO(zipped)) as opened:
        listed = opened.read("md5hashes.csv").decode()
    return [row["MD5Hash"] for row in csv.DictReader(io.StringIO(listed))], len(zipped)


def _get(address: str) -> bytes:
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with without_proxy.open(address, timeout=600) as answer:
        found: bytes = answer.read()
    return found


# --- serving


def main() -> None:
    """Serve the catalogue of the command line."""
    from nbia_pipeline.embedded.catalog import scratch
    from nbia_pipeline.embedded.server.run import serve

    # All that was deflated is kept, however much it is: what is measured is the clients.
    scratch.BUDGET_BYTES = _SHELF_BYTES
    serve(
        benchmark_catalogue(**json.loads(sys.argv[1])),
        control_port=0,
        ready=lambda at: print(json.dumps({"pid": os.getpid(), "url": at.url, "control": at.control_url}), flush=True),
    )


def server_words(large: int, slices: int, small: int, road: int) -> tuple[str, str]:
    """Return the command line of an archive, behind the Python that runs it."""
    numbers = {"large": large, "slices": slices, "small": small, "road": road}
    return str(Path(__file__).resolve()), json.dumps(numbers)


if __name__ == "__main__":
    main()
