"""Nothing new: what it costs to materialize a collection of 100,000 whole series again, through Dagster.

An archive of its own lists one collection; a first run fills its tables. Receipts, and an index of files, are then
written as if every image had been fetched, without the files: nothing of this needs them. What is measured is the
second time: the tables, then the images, with their checks but for `intact`, whose work it is to read a sample of the
files again. No image may be asked for, and of every table one list at the most.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import dagster as dg
    import pyarrow as pa

    from nbia_pipeline.embedded.catalog.model import Catalog
    from nbia_pipeline.lake import Lake

COLLECTION = "Whole"
SERIES_IN_ALL = 100_000
INSTANCES_OF_A_SERIES = 20
IMAGE_BYTES = 526_336
TIME_BAR_SECONDS = 30.0

TABLES_AGAIN = "nbia_tables"
IMAGES_AGAIN = "images_again"

LICENCE = ("Creative Commons Attribution 4.0 International License", "https://creativecommons.org/licenses/by/4.0/")
# The endpoints that move images, and those that list one table of a collection.
IMAGES = {"getImage", "getImageWithMD5Hash", "getSingleImage", "getSOPInstanceUIDs"}
LISTS = {"getPatient", "getPatientStudy", "getSeries"}
LOGIN = {"token", "logout"}

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

Asked = Callable[[], list[str]]
"""Returns the endpoints that were asked since the last call."""


@dataclass(frozen=True)
class Cost:
    """What one job took the second time.

    Attributes:
        job: its name.
        seconds: wall clock.
        requests: how often each endpoint was asked, logins left out.
    """

    job: str
    seconds: float
    requests: dict[str, int]

    @property
    def of_images(self) -> int:
        """How often an image was asked for."""
        return sum(n for name, n in self.requests.items() if name in IMAGES)

    @property
    def most_lists(self) -> int:
        """How often the list of one table was asked for, at the most."""
        return max((n for name, n in self.requests.items() if name in LISTS), default=0)


# --- the archive and the lake


def catalog(series: int) -> Catalog:
    """Return a catalogue of one collection: tables only."""
    from datetime import date, datetime

    import pyarrow as pa

    from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, VISIBLE, Catalog

    same: dict[str, Any] = {
        "Collection": COLLECTION,
        "Modality": "CT",
        "BodyPartExamined": "CHEST",
        "StudyDate": date(2023, 5, 1),
        "SeriesDate": date(2023, 5, 1),
        "ImageCount": INSTANCES_OF_A_SERIES,
        "FileSize": INSTANCES_OF_A_SERIES * IMAGE_BYTES,
        "TimeStamp": datetime(2024, 1, 1, 8, 30),  # noqa: DTZ001 - the server states no zone
        "DateReleased": datetime(2024, 1, 2),  # noqa: DTZ001
        "LicenseName": LICENCE[0],
        "LicenseURI": LICENCE[1],
        "Visibility": VISIBLE,
    }
    numbers = range(series)
    own: dict[str, list[str]] = {
        "SeriesInstanceUID": [f"1.3.6.1.4.1.14519.5.2.1.{7919 * n % 1_000_003}.{n}" for n in numbers],
        "StudyInstanceUID": [f"1.3.6.1.4.1.14519.5.2.2.{n // 4}" for n in numbers],
        "PatientID": [f"W-{n // 8:06d}" for n in numbers],
        "PatientName": [f"W-{n // 8:06d}" for n in numbers],
    }
    columns = [
        pa.array(own[f.name], f.type) if f.name in own else pa.repeat(pa.scalar(same.get(f.name), f.type), series)
        for f in CATALOG_SCHEMA
    ]
    return Catalog(pa.table(columns, schema=CATALOG_SCHEMA))


def pretend_whole(lake: Lake) -> None:
    """Write receipts, files' index and licence as if every image of the collection had been fetched."""
    import pyarrow as pa

    from nbia_pipeline import clock
    from nbia_pipeline.lake.layout import license_path
    from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES, LICENSES, SERIES

    series = lake.read_table(SERIES, COLLECTION).sort_by("SeriesInstanceUID")
    said = {
        "Status": "complete",
        "Bytes": INSTANCES_OF_A_SERIES * IMAGE_BYTES,
        "SeriesMD5": "0" * 32,
        "FetchedAt": clock.utc_now(),
        "Attempts": 1,
        "Healed": 0,
        "Proof": "md5",
    }
    columns = [
        series[f.name] if f.name in series.column_names else pa.repeat(pa.scalar(said.get(f.name), f.type), len(series))
        for f in IMAGE_SERIES.schema
    ]
    lake.write_table(IMAGE_SERIES, pa.table(columns, schema=IMAGE_SERIES.schema), COLLECTION)
    lake.write_pieces(INSTANCES, instances(series, COLLECTION), COLLECTION)
    path = license_path(COLLECTION, LICENCE[0])
    row = {
        "Collection": COLLECTION,
        "LicenseName": LICENCE[0],
        "LicenseURI": LICENCE[1],
        "SeriesCount": series.num_rows,
        "LicenseText": "text",
        "Path": path,
    }
    lake.write_table(LICENSES, pa.Table.from_pylist([row], schema=LICENSES.schema), COLLECTION)
    lake.put_bytes(path, b"text")


def instances(series: pa.Table, collection: str, files: int = INSTANCES_OF_A_SERIES) -> Iterator[pa.Table]:
    """Yield the rows of ``instances`` for series of so many files each, which are not there."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from nbia_pipeline.schema.tables import INSTANCES

    for start in range(0, series.num_rows, 10_000):
        part = series.slice(start, 10_000)
        pieces = []
        for number in range(files):
            uid = pc.binary_join_element_wise(part["SeriesInstanceUID"], str(number), ".")
            folder = ("StudyInstanceUID", "SeriesInstanceUID")
            path = pc.binary_join_element_wise(f"images/{collection}", *(part[c] for c in ("PatientID", *folder)), "/")
            known = {
                "SOPInstanceUID": uid,
                "SeriesInstanceUID": part["SeriesInstanceUID"],
                "Path": pc.binary_join_element_wise(path, pc.binary_join_element_wise(uid, "dcm", "."), "/"),
            }
            said = {
                "Collection": collection,
                "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
                "InstanceNumber": number,
                "Size": IMAGE_BYTES,
                "MD5": f"{number:032x}",
            }
            columns = [
                known[f.name] if f.name in known else pa.repeat(pa.scalar(said[f.name], f.type), len(part))
                for f in INSTANCES.schema
            ]
            pieces.append(pa.table(columns, schema=INSTANCES.schema))
        yield pa.concat_tables(pieces).sort_by([(c, "ascending") for c in ("SeriesInstanceUID", "InstanceNumber")])


# --- measuring


def measure(url: str, folder: Path, instance: dg.DagsterInstance, asked: Asked) -> list[Cost]:
    """Fill the lake, then run the jobs again and return what each took.

    Args:
        url: of the archive.
        folder: for the lake.
        instance: of Dagster.
        asked: what the archive was asked.

    Raises:
        SystemExit: a run failed.
    """
    import dagster as dg

    from nbia_pipeline.definitions import build_definitions
    from nbia_pipeline.defs.naming import Naming
    from nbia_pipeline.lake import Lake
    from nbia_pipeline.settings import Settings

    settings = Settings(archive=url, lake=str(folder), images=("*",))
    names = Naming()
    images = names.key("images")
    intact = dg.AssetSelection.checks(dg.AssetCheckKey(images, "intact"))
    job = dg.define_asset_job(IMAGES_AGAIN, selection=dg.AssetSelection.assets(images) - intact)
    definitions = dg.Definitions.merge(build_definitions(settings, names), dg.Definitions(jobs=[job]))

    def run(job: str, **how: Any) -> float:
        started = time.perf_counter()
        done = definitions.resolve_job_def(job).execute_in_process(
            instance=instance, run_config=_QUIET, raise_on_error=False, **how
        )
        if not done.success:
            failures = [str(e.step_failure_data.user_failure_data) for e in done.all_events if e.is_step_failure]
            raise SystemExit(f"{job} failed: {'; '.join(failures)}")
        return time.perf_counter() - started

    run("nbia_catalogue")
    run(TABLES_AGAIN, partition_key=COLLECTION)
    pretend_whole(Lake(settings.lake))
    costs = []
    for what in (TABLES_AGAIN, IMAGES_AGAIN):
        asked()
        seconds = run(what, partition_key=COLLECTION)
        costs.append(Cost(what, seconds, dict(Counter(e for e in asked() if e not in LOGIN))))
    return costs


def main() -> int:
    """Measure, print, and return 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description="What materializing 100,000 whole series again costs.")
    parser.add_argument("--series", type=int, default=SERIES_IN_ALL, help="how many (default: %(default)s)")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="leave the figures and the bars there, as JSON")
    options = parser.parse_args()
    if options.serve:
        _serve(options.series)
        return 0
    import dagster as dg
    from measuring import serving
    from results import Results

    from nbia_pipeline.embedded.control.client import Control

    words = (str(Path(__file__).resolve()), "--serve", "--series", str(options.series))
    with serving(*words) as line, tempfile.TemporaryDirectory(prefix="nbia-bench-") as temporary:
        doors = json.loads(line)
        control = Control(doors["control"])
        with dg.DagsterInstance.ephemeral(tempdir=temporary) as instance:
            costs = measure(
                doors["url"],
                Path(temporary) / "lake",
                instance,
                lambda: [r["endpoint"] for r in control.requests(clear=True)],
            )
    for cost in costs:
        asked = ", ".join(f"{n} x {name}" for name, n in sorted(cost.requests.items())) or "nothing"
        print(f"{cost.job:<12} {cost.seconds:6.1f} s   asked the archive: {asked}")
    results, again = Results(options.json), f"{options.series:,} complete series again"
    for cost in costs:
        asked = sum(n for name, n in cost.requests.items() if name not in IMAGES)
        results.add(f"{again}, `{cost.job}`", (cost.seconds, "s"), (asked, "small requests"))
    results.at_most(TIME_BAR_SECONDS, again, sum(c.seconds for c in costs), "s")
    results.at_most(0, f"{again}, requests for images", sum(c.of_images for c in costs), "")
    results.at_most(1, f"{again}, requests for each table", max(c.most_lists for c in costs), "")
    return results.finish()


def _serve(series: int) -> None:
    from nbia_pipeline.embedded.server.run import serve

    serve(
        catalog(series),
        control_port=0,
        ready=lambda at: print(json.dumps({"url": at.url, "control": at.control_url}), flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
