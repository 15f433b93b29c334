"""The sides of the image benchmark, each run in a process of its own: ``image_sides.py JOB``.

JOB is a JSON file that names the side, the archive, the series and the folder. Only what a side needs is imported
there. The work begins when a side is logged in and knows its series, and ends when their files are on disk.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from measuring import WORK, cpu_seconds, peak_bytes, timed

THEIR_WORKERS = 10
CURL_PARALLEL = 8
ARCHIVE = "BENCHMARK_ARCHIVE"
PROOFS = ("md5", "md5+count+size")
"""Every MD5 is right: the instances are those of the archive's list, or their count and size are those it states."""


@dataclass(frozen=True)
class Job:
    """What a side shall do.

    Attributes:
        side: key of :data:`SIDES`.
        url: base URL of the archive.
        collection: the collection.
        uids: SeriesInstanceUID of each of its series.
        folder: where the side works; its files go to ``files`` in it.
    """

    side: str
    url: str
    collection: str
    uids: list[str]
    folder: str

    @property
    def files(self) -> Path:
        """Where the files go."""
        return Path(self.folder) / "files"


def engine(job: Job, *, fsync: bool = True) -> None:
    """Fetch with the engine of nbia_pipeline, without Dagster, into a fresh lake."""
    from nbia_pipeline.archive import NbiaClient
    from nbia_pipeline.lake import Lake
    from nbia_pipeline.mirror.engine import Mirror

    with NbiaClient(job.url) as client:
        mirror = Mirror(client, Lake(str(job.files), fsync=fsync))
        mirror.update_tables(job.collection)
        plan = mirror.plan(job.collection)
        with timed(Path(job.folder)):
            for batch in plan.batches():
                mirror.fetch(batch)
            receipts = mirror.commit(job.collection)
    _expect_proven(receipts["Status"].to_pylist(), receipts["Proof"].to_pylist(), len(job.uids))


def engine_unflushed(job: Job) -> None:
    """Do the same, and leave it to the system when the disk gets it."""
    engine(job, fsync=False)


def dagster(job: Job) -> None:
    """Run the main job as ``nbia-pipeline run`` does; the work is its part ``images``."""
    import dagster as dg

    from nbia_pipeline.cli.home import dagster_home
    from nbia_pipeline.cli.run import run_main_job
    from nbia_pipeline.defs.records import kept_open
    from nbia_pipeline.lake import Lake
    from nbia_pipeline.schema.tables import IMAGE_SERIES
    from nbia_pipeline.settings import Settings

    os.environ["DAGSTER_HOME"] = str(Path(job.folder) / "dagster_home")
    dagster_home()
    only = (job.collection,)
    settings = Settings(archive=job.url, lake=str(job.files), collections=only, images=only, headers=())
    marks: list[tuple[str, float]] = []
    with kept_open(), dg.DagsterInstance.get() as instance:  # as the command does
        outcome = run_main_job(settings, instance, lambda line: marks.append((line, cpu_seconds())))
    if outcome.problems:
        raise SystemExit("\n".join(outcome.problems))
    # The parts follow one another: what was used when the images were done, less what was used before.
    at = next(n for n, (line, _) in enumerate(marks) if line.split()[0] == "images")
    cpu = marks[at][1] - marks[at - 1][1]
    took = {"seconds": outcome.seconds["images"], "cpu": cpu, "peak": peak_bytes(), "parts": outcome.seconds}
    (Path(job.folder) / WORK).write_text(json.dumps(took))
    receipts = Lake(settings.lake).read_table(IMAGE_SERIES, job.collection)
    _expect_proven(receipts["Status"].to_pylist(), receipts["Proof"].to_pylist(), len(job.uids))


def _expect_proven(statuses: list[str], proofs: list[str], count: int) -> None:
    by_digests = sum(map(proofs.count, PROOFS))
    if statuses != ["complete"] * count or by_digests != count:
        raise SystemExit(f"of {count} series {statuses.count('complete')} are complete, {by_digests} by MD5")


def tcia_utils(job: Job) -> None:
    """Fetch with tcia_utils and its threads; it verifies nothing."""
    from tcia_utils import nbia  # type: ignore[import-not-found,unused-ignore]

    logging.disable(logging.INFO)
    # The one place that names a host; it knows two by name and no others.
    nbia.setApiUrl = lambda endpoint, api_url="": f"{job.url}/services/v4/"
    with timed(Path(job.folder)):
        nbia.downloadSeries(job.uids, input_type="list", path=str(job.files), max_workers=THEIR_WORKERS)


class Here(Enum):
    """Where the archive is: nbiatoolkit reads the value of a member of its own enumeration, in each process."""

    ARCHIVE = f"{os.environ.get(ARCHIVE, '')}/services/"


def nbiatoolkit(job: Job) -> None:
    """Fetch with nbiatoolkit and its processes; it compares digests."""
    from nbiatoolkit import NBIAClient, OAuth2  # type: ignore[import-not-found,unused-ignore]

    client = NBIAClient(log_level="CRITICAL", return_type="list")
    client.base_url = Here.ARCHIVE
    client._oauth2_client = OAuth2(base_url=Here.ARCHIVE.value)
    client.getCollections()
    with timed(Path(job.folder)):
        if not client.downloadSeries(job.uids, downloadDir=str(job.files), nParallel=THEIR_WORKERS):
            raise SystemExit("nbiatoolkit says that a series failed")


def curl(job: Job) -> None:
    """Fetch the zips with curl, then unpack one after the other: what one types; it verifies nothing."""
    _curl_and_unzip(job, processes=1)


def curl_spread(job: Job) -> None:
    """Do the same, with as many unzips at a time as there are processors."""
    _curl_and_unzip(job, processes=os.cpu_count() or 1)


def _curl_and_unzip(job: Job, processes: int) -> None:
    zips, listing = Path(job.folder) / "zips", Path(job.folder) / "curl.txt"
    zips.mkdir()
    job.files.mkdir()
    address = f"{job.url}/services/v2/getImageWithMD5Hash?SeriesInstanceUID="
    wanted = [f'url = "{address}{uid}"\noutput = "{zips}/{uid}.zip"\n' for uid in job.uids]
    listing.write_text(f'header = "Authorization: Bearer {_token(job.url)}"\n' + "".join(wanted))
    at_a_time = ["--parallel", "--parallel-max", str(CURL_PARALLEL)]
    with timed(Path(job.folder)), ThreadPoolExecutor(processes) as pool:
        _run("curl", "--silent", "--show-error", "--fail", *at_a_time, "--config", str(listing))
        list(pool.map(lambda uid: _run("unzip", "-q", f"{zips}/{uid}.zip", "-d", str(job.files / uid)), job.uids))


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


def _token(url: str) -> str:
    form = urllib.parse.urlencode({"grant_type": "password", "username": "nbia_guest", "password": ""})
    with urllib.request.urlopen(f"{url}/oauth/token", form.encode(), timeout=60) as answer:
        return str(json.load(answer)["access_token"])


SIDES = {
    "engine": engine,
    "engine-unflushed": engine_unflushed,
    "dagster": dagster,
    "tcia_utils": tcia_utils,
    "nbiatoolkit": nbiatoolkit,
    "curl": curl,
    "curl-spread": curl_spread,
}

if __name__ == "__main__":
    given = Job(**json.loads(Path(sys.argv[1]).read_text()))
    SIDES[given.side](given)
