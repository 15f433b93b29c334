"""A disk that is full or broken, and a process that is killed, at any operation: tables and files always agree.

Here a sample of the operations fails; ``make test-disk`` lets each of them fail.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.layout import JOURNAL
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline_tests.helpers import failing_disk
from nbia_pipeline_tests.helpers.failing_disk import KINDS
from nbia_pipeline_tests.helpers.scenarios import SCENARIOS
from nbia_pipeline_tests.helpers.series import files_of, publish, receipt, series_table, wanted
from nbia_pipeline_tests.helpers.sweep import Sweep, sweeping

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(failing_disk.missing() is not None, reason=f"{failing_disk.missing()}"),
]

SAMPLE = 2  # of each scenario
REVISED = "series revised, moved, withdrawn, new"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sweep]:
    with sweeping(tmp_path_factory.mktemp("failing-disk")) as sweep:
        yield sweep


@pytest.mark.parametrize("name", SCENARIOS)
def test_an_operation_that_fails_costs_nothing(sweep: Sweep, name: str) -> None:
    every = [(kind, number) for kind in KINDS for number in range(1, len(sweep.operations(name, kind)) + 1)]
    assert _wrong(sweep, name, random.Random(name).sample(every, SAMPLE)) == []


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("killed", ["images", "image_series", "instances", "annotation_files"]),
        ("EIO once", ["images", "image_series", "instances"]),
        ("full from there on", ["images"]),
    ],
)
def test_files_move_only_while_no_receipt_states_them(sweep: Sweep, kind: str, parts: list[str]) -> None:
    """At every rename of the files of a series, or of the tables about them."""
    renames = [(n, text) for n, text in enumerate(sweep.operations(REVISED, kind), 1) if text.startswith("rename ")]
    chosen = [(kind, number) for number, text in renames if any(f"/{part}/" in text for part in parts)]
    assert len(chosen) > len(parts)
    assert _wrong(sweep, REVISED, chosen) == []


def _wrong(sweep: Sweep, name: str, chosen: list[tuple[str, int]]) -> list[str]:
    before = sweep.failures
    wrong = [f"{kind} at {number}: {text}" for kind, number in chosen for text in sweep.attempt(name, kind, number)]
    assert sweep.failures == before + len(chosen), "the disk did not fail each time"
    return wrong


def test_an_entry_of_the_journal_whose_files_are_gone_revokes_no_receipt(lake: Lake) -> None:
    """A disk can keep the entry and lose the files: then the older version stays, in the older patient's directory."""
    publish(lake, receipt())
    before = commit(lake, "A", series_table([wanted(1)]))
    moved = replace(receipt(), wanted=replace(wanted(1), PatientID="Q"))
    entry = {"receipt": moved.to_json(), "staged": "host.1.abc/files"}
    lake.put_bytes(f"{JOURNAL}/A/1.0001.json", json.dumps(entry).encode())
    assert commit(lake, "A", series_table([moved.wanted])).equals(before)
    assert list(files_of(lake, receipt().path)) == ["9.1.dcm"]
    assert lake.names_in(f"{JOURNAL}/A") == []
