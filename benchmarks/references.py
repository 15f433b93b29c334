"""Ten million references of a collection resolved: seconds and memory, by tables that this script makes.

Each annotation series names all instances of one image series, of another collection. Of every hundredth the stated
series is a wrong one, and of every hundredth the instances are nowhere, so that the tables of all collections are
looked through. A third collection has images that nothing refers to, with UIDs of the same root.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from measuring import run_measured, timed, verdict

from nbia_pipeline.headers.graph.resolve import write_references
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.headers import INSTANCE_REFERENCES
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, SERIES

BAR_SECONDS, BAR_MB = 60, 1000
EACH = 200
"""Instances of a series."""
AT_ONCE = 500
ROOT = "1.3.6.1.4.1.14519.5.2.1"
WRONG, NOWHERE = 1, 2


def main() -> int:
    options = _options()
    if options.lake:
        with timed(Path(options.lake).parent):
            found = write_references(Lake(options.lake), "Annotations")
        print(f"rows: {dict(sorted(Counter(found['Resolution'].to_pylist()).items()))}")
        return 0
    with tempfile.TemporaryDirectory(prefix="nbia-bench-", dir=options.folder) as folder:
        series = options.references // EACH
        make(Lake(f"{folder}/lake", fsync=False), series)
        words = [sys.executable, __file__, "--lake", f"{folder}/lake"]
        measured = run_measured(words, Path(folder))
        print((Path(folder) / "log.txt").read_text().strip())
    holds = measured.work <= BAR_SECONDS and measured.peak_mb <= BAR_MB
    print(
        f"{series * EACH:,} references of {series:,} series, to as many instances: {measured.work:.1f} s, CPU "
        f"{measured.work_cpu:.1f} s, {measured.peak_mb:,.0f} MB; "
        f"at most {BAR_SECONDS} s and {BAR_MB:,} MB: {verdict(holds)}"
    )
    return 0 if holds else 1


def make(lake: Lake, series: int) -> None:
    """Write the tables of as many image series, and annotation series."""
    images, others, drawn = (uids(f"{ROOT}.{number}", series) for number in ("7777.1001", "8888.1001", "9999.1001"))
    for name, of, modality in (("Images", images, "CT"), ("Others", others, "CT"), ("Annotations", drawn, "SEG")):
        count = 1 if of is drawn else EACH
        about = {"SeriesInstanceUID": of, "StudyInstanceUID": of, "PatientID": of, "ImageCount": count}
        lake.write_table(SERIES, table(SERIES, name, **about, Modality=modality), name)
        lake.write_table(IMAGE_SERIES, table(IMAGE_SERIES, name, **about, Status="complete", Bytes=1), name)
        lake.write_pieces(INSTANCES, _instances(name, of, count), name)
    lake.write_pieces(INSTANCE_REFERENCES, _references(images, drawn), "Annotations")


def uids(root: str, count: int, seed: int = 0) -> pa.Array:
    """Return UIDs, sorted, as those of TCIA are: a root, and thirty digits by chance."""
    random = np.random.default_rng([seed, *root.encode()])
    halves = (pa.array(random.integers(10**14, 10**15, count)).cast(pa.string()) for _ in range(2))
    return pc.binary_join_element_wise(f"{root}.", *halves, "").sort()


def instances(series: pa.Array, first: int, count: int) -> pa.Array:
    """Return the SOPInstanceUIDs of the instances of some series, the first of which has this number."""
    root = series[0].as_py().rsplit(".", 1)[0]
    return uids(root, len(series) * count, first + 1)


def table(of: Table, collection: str, **values: object) -> pa.Table:
    """Return rows of a table, of columns and of values that all rows have; null but for these."""
    rows = max(len(v) for v in values.values() if isinstance(v, pa.Array))
    values["Collection"] = collection
    columns = []
    for field in of.schema:
        value = values.get(field.name)
        columns.append(value if isinstance(value, pa.Array) else pa.repeat(pa.scalar(value, field.type), rows))
    return pa.Table.from_arrays(columns, schema=of.schema)


def _instances(collection: str, series: pa.Array, count: int) -> Iterator[pa.Table]:
    for first in range(0, len(series), AT_ONCE):
        some = series.slice(first, AT_ONCE)
        repeated = some.take(pa.array(np.repeat(np.arange(len(some)), count)))
        sops = instances(some, first, count)
        yield table(INSTANCES, collection, SOPInstanceUID=sops, SeriesInstanceUID=repeated, Size=1)


def _references(images: pa.Array, drawn: pa.Array) -> Iterator[pa.Table]:
    for first in range(0, len(images), AT_ONCE):
        some, own = images.slice(first, AT_ONCE), drawn.slice(first, AT_ONCE)
        case = np.repeat(np.arange(len(some)) % 100, EACH)
        at = np.repeat(np.arange(len(some)), EACH)
        found = instances(some, first, EACH)
        nowhere = pc.replace_substring(found, ".7777.", ".7778.")
        stated = np.where(case == WRONG, at - 1, at)
        yield table(
            INSTANCE_REFERENCES,
            "Annotations",
            SOPInstanceUID=own.take(pa.array(at)),
            SeriesInstanceUID=own.take(pa.array(at)),
            Role="described",
            TagPath="00081115.0008114A",
            ReferencedSOPInstanceUID=pc.if_else(pa.array(case == NOWHERE), nowhere, found),
            StatedSeriesInstanceUID=some.take(pa.array(stated)),
            Times=1,
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time and memory of resolving the references of a collection.")
    parser.add_argument("--references", type=int, default=10_000_000, help="how many (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the tables are made (default: the system's for such files)")
    parser.add_argument("--lake", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
