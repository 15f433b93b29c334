"""The main job from the command line, as a person starts it: in a process of its own, with its own archive."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.digests import series_md5
from nbia_pipeline.schema.tables import IMAGE_SERIES, INSTANCES
from nbia_pipeline_tests.helpers.places import Place, copied, files_below
from nbia_pipeline_tests.helpers.processes import contents, environment, leftovers

pytestmark = pytest.mark.slow

RUN = [sys.executable, "-m", "nbia_pipeline", "run"]


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = environment(folder, **{"NBIA_HEADERS": "*", **variables})
    return subprocess.run([*RUN, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that one run filled without trouble."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder)
    assert done.returncode == 0, done.stderr
    (folder / "out").write_text(done.stdout)
    return folder


def test_the_summary_says_what_was_done(undisturbed: Path) -> None:
    out = (undisturbed / "out").read_text()
    assert "total                  10       14      39               39  39 of 39    395  11.9 MB" in out
    assert "Fetched   39 series, 395 files, 11.9 MB; 0 series were already in the lake." in out
    assert "Headers   of 395 files are in the tables; 395 were read now.\n" in out
    assert "          They state 39 references to series; 3 of annotations do not lead to their images.\n" in out
    assert "asset checks passed, 0 failed, 1 warned" in out
    assert "nbia-pipeline dev, then http://localhost:3000" in out


def test_a_second_run_fetches_no_image_and_says_so(undisturbed: Path, place: Place) -> None:
    before = contents(undisturbed)
    lake = copied(undisturbed / "a lake", place / "a lake")
    done = run(undisturbed, "--json", NBIA_LAKE=lake.uri)
    assert done.returncode == 0, done.stderr
    assert "Fetched   no images: 39 series were already in the lake." in done.stderr
    told = json.loads(done.stdout)
    assert (told["fetched"]["skipped_series"], told["fetched"]["fetched_bytes"], told["problems"]) == (39, 0, [])
    assert told["collections"]["TCGA-DEMO"]["files"] == 124
    assert (told["headers"]["files"], told["headers"]["read_files"]) == (395, 0)
    assert contents(place) == before
    assert leftovers(place) == []


@pytest.mark.parametrize("files", [1, 150, 300])
def test_a_run_killed_half_way_and_started_again_ends_with_the_same_lake(
    undisturbed: Path, tmp_path: Path, place: Place, files: int, request: pytest.FixtureRequest
) -> None:
    if files != 150 and not request.config.getoption("--every-moment"):
        pytest.skip("takes a quarter of a minute: make test-stop")
    images, lake = place / "a lake" / "images", str(place / "a lake")
    environ = environment(tmp_path, NBIA_LAKE=lake, NBIA_HEADERS="*")
    with subprocess.Popen(
        RUN, cwd=tmp_path, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and len(files_below(images)) < files:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    killed_with = len(files_below(images))
    again = run(tmp_path, NBIA_LAKE=lake)
    assert again.returncode == 0, again.stderr
    assert contents(place) == contents(undisturbed)
    assert leftovers(place) == []
    assert killed_with >= files, "the run ended before it could be killed"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"NBIA_USERNAME": "demo_member", "NBIA_PASSWORD": "not-the-right-one"},
            "refuses the account 'demo_member' (invalid_grant: Invalid user credentials): check username and password "
            "(NBIA_USERNAME, NBIA_PASSWORD) [",
        ),
        ({"NBIA_ARCHIVE": "http://127.0.0.1:9/nbia-api"}, "check base_url and your connection (NBIA_ARCHIVE) ["),
        (
            {"NBIA_LAKE": "/dev/null/lake"},
            "cannot write in the lake /dev/null/lake (Not a directory): check that you may write there and that there "
            "is room (NBIA_LAKE)\n",
        ),
        ({"NBIA_COLLECTIONS": "tcga-demo"}, "'tcga-demo', which matches no collection that 'nbia_guest' may see: did"),
        ({"NBIA_IMAGES": "LIDC*"}, "NBIA_IMAGES has 'LIDC*', which matches no collection"),
        ({"NBIA_API": "v3"}, "NBIA_API is 'v3': set it to v2 or v4"),
    ],
)
def test_bad_input_is_one_clear_sentence_and_leaves_the_lake_as_it_was(
    undisturbed: Path, tmp_path: Path, place: Place, variables: dict[str, str], sentence: str
) -> None:
    before = contents(undisturbed)
    lake = copied(undisturbed / "a lake", place / "a lake")
    given = {"NBIA_LAKE": lake.uri, **variables}
    done = run(tmp_path, **given)
    assert done.returncode == (2 if "NBIA_API" in variables else 1)
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "not-the-right-one" not in done.stdout + done.stderr
    assert contents(place) == before
    assert leftovers(place) == []


def replace_unseen(lake: Place) -> None:
    """Make one series of the lake another one that is whole, as if the archive had replaced it without a sign."""
    opened = Lake(str(lake))
    files = opened.read_table(INSTANCES, "TCGA-DEMO").to_pylist()
    content = (opened.read_bytes(files[0]["Path"]) or b"")[:-1] + b"?"
    opened.put_bytes(files[0]["Path"], content)
    files[0]["MD5"] = hashlib.md5(content).hexdigest()
    opened.write_table(INSTANCES, pa.Table.from_pylist(files, schema=INSTANCES.schema), "TCGA-DEMO")
    uid = files[0]["SeriesInstanceUID"]
    receipts = opened.read_table(IMAGE_SERIES, "TCGA-DEMO").to_pylist()
    (receipt,) = (r for r in receipts if r["SeriesInstanceUID"] == uid)
    receipt["SeriesMD5"] = series_md5([f["MD5"] for f in files if f["SeriesInstanceUID"] == uid])
    opened.write_table(IMAGE_SERIES, pa.Table.from_pylist(receipts, schema=IMAGE_SERIES.schema), "TCGA-DEMO")


def test_a_check_that_only_warns_is_told_and_fails_nothing(tmp_path: Path, place: Place) -> None:
    lake = place / "a lake"
    only = {"NBIA_COLLECTIONS": "TCGA-DEMO", "NBIA_IMAGES": "TCGA-DEMO", "NBIA_LAKE": str(lake), "NBIA_HEADERS": ""}
    assert run(tmp_path, **only).returncode == 0
    replace_unseen(lake)
    done = run(tmp_path, **only)
    assert "nbia-pipeline: warning: images agrees_with_archive" in done.stderr
    assert "13 asset checks passed, 0 failed, 1 warned" in done.stdout
    assert done.returncode == 0, done.stderr
