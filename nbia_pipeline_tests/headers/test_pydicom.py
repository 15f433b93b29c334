"""pydicom is the oracle: Header is what it says but for the rules of the documentation, and no byte is lost."""

from __future__ import annotations

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from nbia_pipeline_tests.helpers.headers import (
    by_pydicom,
    demo_files,
    differences,
    highdicom_files,
    pydicom_files,
    quiet,
    row,
    rows,
    unaccounted,
)

NOT_READ = {"test_files/no_meta.dcm": "it cannot be read: no data set is found in it"}
"""Of pydicom's files, those that pydicom makes nothing of either."""


def check(names: list[str], files: dict[str, bytes]) -> None:
    """Compare the rows of some files, read one after the other, with pydicom."""
    with quiet():
        for name, found in zip(names, rows(*(files[name] for name in names)), strict=True):
            if name in NOT_READ:
                assert (found["Header"], found["Problems"]) == (None, [NOT_READ[name]])
                continue
            assert differences(found, files[name]) == [], name


def test_files_of_pydicom() -> None:
    files = pydicom_files()
    assert len(files) >= 78
    check([*files], files)


def test_the_demo(request: pytest.FixtureRequest) -> None:
    files = demo_files(every=request.config.getoption("--every-moment"))
    assert len({name.split()[0] for name in files}) >= 8
    check([*files], files)


def test_objects_of_highdicom() -> None:
    files = highdicom_files()
    check([*files], files)


def test_every_byte_is_somewhere(request: pytest.FixtureRequest) -> None:
    every = request.config.getoption("--every-moment")
    files = {**pydicom_files(), **highdicom_files(), **(demo_files() if every else {})}
    with quiet():
        for name, data in files.items():
            if name in NOT_READ:
                continue
            theirs = by_pydicom(data)
            if theirs.file_meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                continue
            assert unaccounted(row(data), data) == 0, name


def test_a_data_set_of_pydicom_has_the_same_tags(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    # Else pydicom reads what is no value of its VR by the VR of the tag, and raises.
    monkeypatch.setattr(pydicom.config, "replace_un_with_known_vr", False)
    every = request.config.getoption("--every-moment")
    files = {**pydicom_files(), **highdicom_files(), **(demo_files() if every else {})}
    with quiet():
        for name, data in files.items():
            if name in NOT_READ:
                continue
            theirs = by_pydicom(data)
            again = pydicom.Dataset.from_json(row(data)["Header"], lambda uri: b"")
            assert [*again.keys()] == [tag for tag in sorted(theirs.keys()) if tag & 0xFFFF and tag >> 16 != 0x7FE0], (
                name
            )
