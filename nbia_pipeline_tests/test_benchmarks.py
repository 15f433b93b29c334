"""What the benchmarks found stands in the documentation as their scripts wrote it, and every script is run by one."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"
MODULES = ("measuring", "results", "peers", "run_all", "road", "image_report", "image_archive")


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """The modules of the benchmarks, which find each other as in a script."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in MODULES}
    finally:
        sys.path.remove(str(FOLDER))
        for name in MODULES:
            sys.modules.pop(name, None)


def section(run_all: ModuleType, page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    assert text.count(run_all.BEGIN) == text.count(run_all.END) == 1
    lines: list[str] = text.partition(run_all.BEGIN)[2].partition(run_all.END)[0].strip("\n").split("\n")
    return lines


def test_the_pages_have_the_figures_that_were_measured(scripts: dict[str, ModuleType]) -> None:
    run_all = scripts["run_all"]
    found = json.loads(run_all.STORE.read_text(encoding="utf-8"))
    again = "run: python benchmarks/run_all.py --render"
    assert section(run_all, run_all.PAGE) == run_all.lines(found), again
    assert section(run_all, run_all.README) == run_all.readme_lines(found), again


def test_every_figure_of_speed_in_the_readme_is_a_measured_one(scripts: dict[str, ModuleType]) -> None:
    run_all = scripts["run_all"]
    table, text = "\n".join(section(run_all, run_all.PAGE)), run_all.README.read_text(encoding="utf-8")
    figures = set(re.findall(r"\b\d+(?:\.\d+)? (?:ms|s|MB/s|GB/s|requests/s)(?!\w)", text))
    set_up = {"150 ms", "80 ms", "40 MB/s"}
    assert [figure for figure in sorted(figures - set_up) if figure not in table] == []


def test_every_script_is_run(scripts: dict[str, ModuleType]) -> None:
    run_all = scripts["run_all"]
    takes_json = {file.name for file in FOLDER.glob("*.py") if "Results(" in file.read_text(encoding="utf-8")}
    assert takes_json - {"results.py", "image_report.py"} == {bench.script for bench in run_all.BENCHES}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    page = run_all.PAGE.read_text(encoding="utf-8")
    for bench in run_all.BENCHES:
        assert f"benchmarks/{bench.script}" in makefile
        assert f"| {bench.name} | `make " in page


def test_the_options_of_every_script_are_known(scripts: dict[str, ModuleType]) -> None:
    for bench in scripts["run_all"].BENCHES:
        words = [sys.executable, str(FOLDER / bench.script), "--help"]
        known = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
        used = {word for word in (*bench.words, *bench.quick, "--json") if word.startswith("--")}
        assert used <= set(re.findall(r"--[\w-]+", known)), bench.script


def results(scripts: dict[str, ModuleType], file: Path | None = None) -> Any:
    return scripts["results"].Results(file)


def test_what_a_script_leaves_is_what_is_read(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    found = results(scripts, tmp_path / "rows.json")
    found.add("engine", (3.8149, "s"), (60, "requests"), rounds=3)
    assert found.at_most(1.2, "ratio", 1.2, "times")
    assert found.finish() == 0
    assert not found.at_least(0.9, "line", 0.899, "")
    assert found.finish() == 1
    rows = scripts["results"].read(tmp_path / "rows.json")
    assert rows == found.rows
    assert [(row.what, row.found, row.bar, row.holds) for row in rows] == [
        ("engine", "3.81 s, 60 requests", "", None),
        ("ratio", "1.20 times", "at most 1.20 times", True),
        ("line", "0.90", "at least 0.90", False),
    ]


SCRIPT = """
import sys
from pathlib import Path
from results import Results
found = Results(Path(sys.argv[sys.argv.index("--json") + 1]))
found.at_most(1, "a figure", {figure}, "s")
code = found.finish()
if {fails}:
    raise SystemExit("it broke")
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("figure", "fails", "failed"),
    [(1, False, False), (2, False, False), (1, True, True)],
    ids=["holds", "not", "fails"],
)
def test_one_script_that_fails_keeps_no_other_from_running(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    figure: int,
    fails: bool,
    failed: bool,
) -> None:
    run_all = scripts["run_all"]
    for name, code in (
        ("first", SCRIPT.format(figure=figure, fails=fails)),
        ("last", SCRIPT.format(figure=1, fails=0)),
    ):
        (tmp_path / f"{name}.py").write_text(code)
    pages = {name: tmp_path / name for name in ("page.md", "readme.md")}
    for page in pages.values():
        page.write_text(f"before\n{run_all.BEGIN}\nold\n{run_all.END}\nafter\n")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    monkeypatch.setattr(run_all, "BENCHES", [run_all.Bench(n, f"{n}.py") for n in ("first", "last")])
    monkeypatch.setattr(run_all, "STORE", tmp_path / "found.json")
    monkeypatch.setattr(run_all, "PAGE", pages["page.md"])
    monkeypatch.setattr(run_all, "README", pages["readme.md"])
    monkeypatch.setattr(run_all, "ROOT", tmp_path)
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "machine", lambda folder: "a machine")
    monkeypatch.setattr(run_all, "versions", lambda: {"Python": "3"})
    monkeypatch.setattr(sys, "argv", ["run_all.py"])
    good = figure <= 1 and not fails
    assert run_all.main() == (0 if good else 1)
    found = json.loads(run_all.STORE.read_text())
    assert bool(found["benches"]["first"]["failed"]) == failed
    assert found["benches"]["last"]["failed"] == ""
    written = pages["page.md"].read_text()
    assert written.startswith(f"before\n{run_all.BEGIN}\n\na machine. Python 3.\n")
    assert written.endswith(f"{run_all.END}\nafter\n")
    assert f"| first | a figure | {figure} s | at most 1 s | {'yes' if figure == 1 else '**no**'} | 1 |" in written
    assert ("| first | **failed** |" in written) == failed
    # A part replaces its own rows, and nothing where the machine is another one.
    (tmp_path / "first.py").write_text(SCRIPT.format(figure=0, fails=0))
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--only", "first"])
    assert run_all.main() == 0
    assert "| first | a figure | 0 s |" in pages["page.md"].read_text()
    assert "| last | a figure | 1 s |" in pages["page.md"].read_text()
    monkeypatch.setattr(run_all, "machine", lambda folder: "another machine")
    before = pages["page.md"].read_text()
    assert run_all.main() == 0
    assert pages["page.md"].read_text() == before
    assert "nothing is written" in capsys.readouterr().out


def test_a_folder_in_memory_is_none_on_a_disk(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = scripts["measuring"]
    monkeypatch.setattr(measuring, "filesystem", lambda folder: "tmpfs")
    with pytest.raises(SystemExit, match="is in memory"):
        measuring.expect_disk(Path("/somewhere"))
    monkeypatch.setattr(measuring, "filesystem", lambda folder: "ext4")
    assert measuring.expect_disk(None) == "ext4"


def test_the_file_system_is_that_of_the_nearest_mount(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measuring = scripts["measuring"]
    (tmp_path / "mounts").write_text("/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/x xfs rw 0 0\n")
    monkeypatch.setattr(measuring, "_PROC", tmp_path)
    kinds = {at: measuring.filesystem(Path(at)) for at in ("/", "/tmpfoo", "/tmp", "/tmp/y", "/tmp/x/z")}
    assert kinds == {"/": "ext4", "/tmpfoo": "ext4", "/tmp": "tmpfs", "/tmp/y": "tmpfs", "/tmp/x/z": "xfs"}


def test_the_road_has_real_files_of_the_sizes_and_digests_that_it_states(scripts: dict[str, ModuleType]) -> None:
    import hashlib
    import io
    import zlib

    import pydicom

    from nbia_pipeline.embedded.phantoms.store import PhantomStore

    road, plans = scripts["road"], scripts["image_archive"]._plans("Road", 3, 64, 5)
    assert road.wire_sizes(60)[:3] == [20_000_000, 45_084_746, 29_491_525]
    assert (min(road.wire_sizes(60)), max(road.wire_sizes(60))) == (20_000_000, 60_000_000)
    store = road.RoadStore(plans, behind=PhantomStore(()))
    digests = set()
    for plan in plans:
        stored = store.instances(plan.uid)
        for at in (0, 1, len(stored) - 1):
            instance = stored[at]
            data, packed = (get(plan.uid, instance.sop_instance_uid) for get in (store.read, store.packed))
            assert len(data) == instance.size == packed.size
            assert zlib.decompress(packed.data, -zlib.MAX_WBITS) == data
            assert zlib.crc32(data) == packed.crc
            digests.add(hashlib.md5(data, usedforsecurity=False).hexdigest())
            assert store.md5(plan.uid, instance.sop_instance_uid) in digests
            read = pydicom.dcmread(io.BytesIO(data))
            assert (read.SeriesInstanceUID, int(read.InstanceNumber)) == (plan.uid, at + 1)
            assert read.SOPInstanceUID == read.file_meta.MediaStorageSOPInstanceUID == instance.sop_instance_uid
            assert read.pixel_array.shape == (64, 64)
    assert len(digests) == 9
