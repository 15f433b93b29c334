"""An archive whose texts are all hostile: in the terminal, the log and the Dagster UI they are texts."""

from __future__ import annotations

import dataclasses
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest

from nbia_pipeline.cli.main import main
from nbia_pipeline.embedded.catalog.model import Catalog, CollectionDescription
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import COLLECTIONS, SERIES
from nbia_pipeline.text import shown
from nbia_pipeline_tests.helpers.archives import serving
from nbia_pipeline_tests.helpers.faults import Faults, answer
from nbia_pipeline_tests.helpers.tiny import tiny_catalog
from nbia_pipeline_tests.test_text import in_markdown

pytestmark = pytest.mark.slow

MARKUP = "![i](http://evil.example/i.png)<img src=http://evil.example/h.png>[l](javascript:x)`|"
ACTS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\u200b\r\nnbia-pipeline: all is well"
HOSTILE = f"{MARKUP}{ACTS}"
# But for line breaks and tabs, which a traceback has.
ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069]")
NAME = f"A {MARKUP.replace('/', ':')}"
TEXTS = [
    *("Site", "Manufacturer", "ManufacturerModelName", "SeriesDescription", "StudyDescription", "LicenseName"),
    *("LicenseURI", "CollectionURI", "Modality", "BodyPartExamined", "PatientName", "ProtocolName"),
]


def hostile() -> Catalog:
    """Return a catalog with a collection that has images, one whose series has no usable name, and one of controls."""
    tiny = tiny_catalog()
    names = [name for name in TEXTS if name in tiny.series.column_names]
    rows: list[dict[str, Any]] = [r for r in tiny.series.to_pylist() if r["SeriesInstanceUID"] in ("1.1", "1.2", "3.1")]
    for row, collection in zip(rows, (NAME, NAME, f"B {HOSTILE}"), strict=True):
        row.update(dict.fromkeys(names, HOSTILE), Collection=collection, PatientID=f"P {HOSTILE}")
    rows[1]["SeriesInstanceUID"] = f"9.1; touch pwned {HOSTILE}"
    return dataclasses.replace(
        tiny,
        series=pa.Table.from_pylist(rows, schema=tiny.series.schema),
        descriptions={NAME: CollectionDescription(NAME, f"<p>{HOSTILE}</p>", HOSTILE, 1_700_000_000_000)},
        carts={},
    )


@pytest.fixture
def faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    monkeypatch.chdir(tmp_path)
    faults = Faults(create_app(hostile()))
    with serving(faults) as url:
        for name, value in {"ARCHIVE": url, "LAKE": str(tmp_path / "lake"), "IMAGES": "*"}.items():
            monkeypatch.setenv(f"NBIA_{name}", value)
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
        yield faults


def test_hostile_texts_are_texts(
    faults: Faults, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "nbia_pipeline")
    faults.inject("getManufacturerValues", answer(400, HOSTILE.encode()))
    faults.inject("getBodyPartValues", answer(200, f"<html>{HOSTILE}".encode()), times=9)
    assert main(["run"]) == 1
    lake = Lake(str(tmp_path / "lake"))
    (image, *_) = (tmp_path / "lake" / "images").rglob("*.dcm")
    (image.parent / f"x{ACTS.replace('/', '')}.dcm").write_bytes(b"")
    image.write_bytes(b"damaged")
    assert main(["plan"]) == 0
    assert main(["verify"]) == 1
    assert main(["released", NAME, "--since", "2001-01-01"]) == 0
    assert main(["prune", HOSTILE]) == 2
    assert main(["prune"]) == 0
    out, err = capfd.readouterr()
    assert r"\x1b]0;owned\x07" in out
    assert r"\x1b]0;owned\x07" in err
    expect_plain(f"{out}{err}")
    assert "\nnbia-pipeline: all is well" not in f"\n{out}{err}"
    assert caplog.messages
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("nbia_pipeline")]
    assert any(r"\x1b" in message for message in ours)
    assert [m for m in ours if shown(m) != m] == []
    # The lake has what was sent.
    assert set(lake.read_table(SERIES, NAME)["SeriesDescription"].to_pylist()) == {HOSTILE}
    assert f"B {HOSTILE}" in lake.read_table(COLLECTIONS)["Collection"].to_pylist()
    with dg.DagsterInstance.get() as instance:
        assert list(instance.get_dynamic_partitions("nbia_collections")) == [NAME]
        entries = [entry for run in instance.get_runs() for entry in instance.all_logs(run.run_id)]
    expect_texts(entries)
    expect_commands_that_can_be_pasted(entries)


def expect_texts(entries: list[dg.EventLogEntry]) -> None:
    """Expect that what is shown as text has no controls, and what is Markdown nothing but code of others."""
    failures, findings = 0, 0
    for entry in entries:
        expect_plain(entry.user_message)
        event = entry.dagster_event
        if event is None:
            continue
        data: Any = event.event_specific_data
        metadata: dict[str, Any] = {}
        if event.is_step_failure:
            failures += 1
            assert shown(data.user_failure_data.description) == data.user_failure_data.description
            expect_plain(str(data.error))
            metadata = data.user_failure_data.metadata
        elif event.event_type_value == "ASSET_CHECK_EVALUATION":
            metadata = data.metadata
            if not data.passed:
                findings += 1
                assert not {"image", "link_open", "html_inline", "html_block"} & set(in_markdown(data.description))
        elif event.is_step_materialization:
            metadata = data.materialization.metadata
        for value in metadata.values():
            expect_value(value)
    assert failures >= 2
    assert findings


def expect_value(value: Any) -> None:
    if isinstance(value, dg.MarkdownMetadataValue):
        without_pictures = re.sub(r"!\[[\w ._-]*\]\(data:image/jpeg;base64,[\w+/=]*\)", "", value.value)
        assert not {"image", "link_open", "html_inline", "html_block"} & set(in_markdown(without_pictures))
    elif isinstance(value, dg.TableMetadataValue):
        for record in value.records:
            for cell in record.data.values():
                assert shown(cell) == str(cell)
    else:
        assert not isinstance(value, dg.UrlMetadataValue)
        expect_plain(str(value.value))


def expect_plain(text: str) -> None:
    assert not ACTING.search(text), text


def expect_commands_that_can_be_pasted(entries: list[dg.EventLogEntry]) -> None:
    """Expect that a shell takes the UID in a suggested command for one word."""
    found = []
    for entry in entries:
        event = entry.dagster_event
        if event is not None and event.event_type_value == "ASSET_CHECK_EVALUATION":
            data: Any = event.event_specific_data
            found += [str(value.value) for name, value in data.metadata.items() if name == "remedy"]
    commands = [shlex.split(command.strip("` ")) for command in found]
    assert any(command[:2] == ["nbia-pipeline", "run"] and "touch" in " ".join(command) for command in commands)
    assert not any("touch" in command for command in commands)
