"""Parts of ``make scale-out``: hosts, the comparison of lakes, and the table in the documentation."""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nbia_pipeline_tests.scale_out import report
from nbia_pipeline_tests.scale_out.archive import COLLECTION, catalog
from nbia_pipeline_tests.scale_out.compare import contents, differences, rows_of

HOSTS = """
import tempfile
from pathlib import Path
from nbia_pipeline_tests.scale_out.hosts import FULL, enter, network
enter()
with tempfile.TemporaryDirectory() as folder, network(Path(folder)) as net:
    one, other = net.host("one"), net.host("other")
    (other.folder / "home" / "of the other").touch()
    look = f"touch own; find {folder} -type f; hostname; touch {folder}/common /tmp/../etc/common; echo end"
    one.run(["sh", "-c", look])
    sleeping = one.start(["sleep", "100"])
    one.kill()
    print(net.isolation == FULL, one.inside == other.inside, one.address != other.address, sleeping.poll(), folder)
    print(one.log())
"""


def test_hosts_have_nothing_in_common_and_end_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", HOSTS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    facts, *said = done.stdout.strip().split("\n")
    if not facts.startswith("True"):
        pytest.skip("hosts need namespaces: root on Linux, with unshare, nsenter and ip")
    folder = facts.split()[-1]
    assert facts == f"True True True -9 {folder}"
    inside = f"{folder}/host"
    files = {line for line in said if line.startswith(folder)}
    assert files == {f"{inside}/home/own", f"{inside}/log"}
    assert "one" in said
    assert sum("Read-only file system" in line for line in said) == 1  # the folder of the hosts is the host's own
    assert not Path("/etc/common").exists()


def lake_of(folder: Path, rows: list[dict[str, Any]], content: bytes = b"image") -> tuple[Any, str]:
    for top in ("tables/series/Collection=A", "tables/verifications", "images/A"):
        (folder / top).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "tables/series/Collection=A/part-0.parquet")
    (folder / "tables/verifications/sample").write_bytes(str(folder).encode())
    (folder / "images/A/1.dcm").write_bytes(content)
    return fsspec.filesystem("file"), str(folder)


def test_lakes_are_equal_but_for_times_and_the_order_of_rows(tmp_path: Path) -> None:
    now, then = datetime(2026, 1, 1), datetime(2025, 1, 1)  # noqa: DTZ001
    rows = [{"UID": uid, "N": n, "FetchedAt": now} for uid, n in (("1", None), ("2", 5), ("2", 4))]
    fs, root = lake_of(tmp_path / "a", rows)
    one = contents(fs, root)
    assert set(one) == {"tables/series/Collection=A/part-0.parquet", "images/A/1.dcm"}
    assert rows_of(fs, root, "series") == 3
    same = lake_of(tmp_path / "b", [{**row, "FetchedAt": then} for row in reversed(rows)])
    assert differences(contents(*same), one) == []
    other = contents(*lake_of(tmp_path / "c", [*rows[:2], {**rows[2], "N": 3}], b"Image"))
    assert differences(other, one) == ["images/A/1.dcm differs", "tables/series/Collection=A/part-0.parquet differs"]
    assert differences({"x": ""}, {"y": ""}) == ["x is too much", "y is missing"]


def test_the_archive_has_the_collection() -> None:
    rows = catalog(3, whole=False).series
    assert rows["Collection"].to_pylist() == [COLLECTION] * 3
    assert len(set(rows["SeriesInstanceUID"].to_pylist())) == 3


def test_the_page_has_the_figures_that_were_measured() -> None:
    assert report.section() == report.lines(report.read()), "run: python -m nbia_pipeline_tests.scale_out --render"
