"""``references`` shows what a series refers to, and what refers to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbia_pipeline.cli.main import main
from nbia_pipeline.headers.graph.resolve import write_references
from nbia_pipeline.lake import Lake
from nbia_pipeline_tests.helpers.referring import CT, GONE, IMAGES, LISTED, OTHER, RESULTS, SEG, few_series


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake with a SEG that refers to two series, of which nobody has one, and the variables that lead to it."""
    monkeypatch.setenv("NBIA_LAKE", str(tmp_path / "lake"))
    lake = Lake(str(tmp_path / "lake"), fsync=False)
    world = few_series(lake)
    world.refer(SEG, RESULTS, CT, f"{CT}.1", f"{CT}.2")
    world.refer(SEG, RESULTS, GONE, f"{GONE}.1")
    write_references(lake, RESULTS)
    return lake


def shown(capsys: pytest.CaptureFixture[str], uid: str, *words: str, code: int = 0) -> str:
    """Return what the command prints."""
    assert main(["references", uid, *words]) == code
    return capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], uid: str) -> dict[str, Any]:
    """Return the JSON document of the command."""
    found: dict[str, Any] = json.loads(shown(capsys, uid, "--json"))
    return found


OF_CT = {"role": "described", "instances": 2, "of": 4, "missing": 0, "resolution": "held", "stated": True}
OF_GONE = {"role": "described", "instances": 1, "of": None, "missing": 1, "resolution": "unknown", "stated": True}


@pytest.mark.parametrize("uid", [SEG, f"{SEG}.1"], ids=["series", "instance"])
def test_what_an_annotation_refers_to(lake: Lake, capsys: pytest.CaptureFixture[str], uid: str) -> None:
    assert document(capsys, uid) == {
        "series": SEG,
        "collection": RESULTS,
        "modality": "SEG",
        "state": "held",
        "refers_to": [
            {**OF_CT, "series": CT, "modality": "CT", "collection": IMAGES},
            {**OF_GONE, "series": GONE, "modality": None, "collection": None},
        ],
        "referred_to_by": [],
    }
    assert shown(capsys, uid).split("\n") == [
        "Series 1.2.60: SEG of Results, held",
        "",
        "It refers to:",
        "role       series  modality  collection  instances  of  missing  resolution",
        "---------------------------------------------------------------------------",
        "described  1.2.10  CT        Images      2          4   0        held",
        "described  1.2.50  -         -           1          -   1        unknown",
        "",
    ]


def test_what_refers_to_a_series(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    by = {"series": SEG, "modality": "SEG", "collection": RESULTS}
    found = document(capsys, CT)
    assert (found["refers_to"], found["referred_to_by"]) == ([], [{**OF_CT, **by}])
    found = document(capsys, GONE)
    assert (found["state"], found["collection"], found["referred_to_by"]) == ("unknown", None, [{**OF_GONE, **by}])
    assert "It is referred to by:\nrole" in shown(capsys, GONE)


def test_what_is_not_known_is_said(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert "have not been read yet" in shown(capsys, OTHER)
    assert "Its files are not in the lake" in shown(capsys, LISTED)
    write_references(lake, IMAGES)
    assert shown(capsys, OTHER).split("\n")[1:] == ["It refers to nothing that is known, and nothing refers to it.", ""]


def test_a_uid_that_nothing_has_is_a_wrong_call(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["references", "9.9"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"the lake {lake.uri} knows of no series or instance '9.9'" in said.err
