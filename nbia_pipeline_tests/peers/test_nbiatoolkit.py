"""nbiatoolkit, on v2 with tokens, says the same as our client; where it does not, the test says how."""

from __future__ import annotations

import re
import sys
from datetime import date, datetime, timedelta
from typing import Any

import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.archive.errors import NotAvailable
from nbia_pipeline_tests.helpers import references_of_demo as demo
from nbia_pipeline_tests.helpers.peers import EVER, SINCE, Ask, Asked
from nbia_pipeline_tests.peers import rows
from nbia_pipeline_tests.peers.rows import in_order

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(sys.version_info >= (3, 13), reason="nbiatoolkit wants pyarrow 15, which 3.13 has no wheel of"),
]

# How it reads a day: it tries month first, and day first where there is no such month.
GUESSED = {"04/08/2018": date(2018, 4, 8), "13/08/2019": date(2019, 8, 13)}
EMPTY = "ValueError: The response content is empty. Check your request parameters and try again."


@pytest.fixture(scope="module")
def said(ask: Ask) -> Asked:
    return ask("ask_nbiatoolkit.py", [f"{SINCE}", f"{EVER}", *GUESSED])


def test_collections(said: Asked, ours_v2: NbiaClient) -> None:
    assert rows.values(said.answers["collections"], "Collection") == ours_v2.collection_values()


def test_counts_are_texts(said: Asked, ours_v2: NbiaClient) -> None:
    theirs = {row["Collection"]: row["PatientCount"] for row in said.answers["collection_counts"]}
    assert theirs == {name: str(count) for name, count in ours_v2.collection_counts().items()}


def test_modalities(said: Asked, ours_v2: NbiaClient) -> None:
    mine = ours_v2.modality_values().to_pylist()
    assert said.answers["modalities"] == [{"Modality": row["Modality"]} for row in mine]
    assert in_order(said.answers["modality_counts"], "Modality") == [
        {"Modality": row["Modality"], "PatientCount": str(row["PatientCount"])} for row in mine
    ]


def test_body_parts_keep_the_names_of_the_server(said: Asked, ours_v2: NbiaClient) -> None:
    theirs = {row["criteria"]: row["count"] for row in said.answers["body_part_counts"]}
    mine = {row["BodyPartExamined"]: str(row["PatientCount"]) for row in ours_v2.body_part_values().to_pylist()}
    assert theirs.pop("NOT SPECIFIED") == mine.pop(None)
    assert theirs == mine


def test_descriptions_are_without_markup_and_time(said: Asked, ours_v2: NbiaClient) -> None:
    for name, [theirs] in said.answers["descriptions"].items():
        [mine] = ours_v2.collection_description(name).to_pylist()
        plain = re.sub("<[^>]*>", "", mine["Description"]).replace("&amp;", "&")
        assert theirs == {
            "Collection": mine["Collection"],
            "Description": plain,
            "DescriptionURI": mine["DescriptionURI"],
            "LastUpdated": f"{mine['DescriptionTimestamp']:%Y-%m-%d}",
        }


def test_patients(said: Asked, ours_v2: NbiaClient) -> None:
    for name, theirs in said.answers["patients"].items():
        mine = rows.sent_v2(ours_v2.patients(name), rows.PATIENT)
        assert in_order(theirs, "PatientId") == in_order(mine, "PatientId")


def test_studies(said: Asked, ours_v2: NbiaClient) -> None:
    for name, theirs in said.answers["studies"].items():
        mine = rows.sent_v2(ours_v2.studies(name), rows.STUDY)
        assert in_order(theirs, "StudyInstanceUID") == in_order(mine, "StudyInstanceUID")


def test_series(said: Asked, ours_v2: NbiaClient) -> None:
    for name, theirs in said.answers["series"].items():
        mine = rows.sent_v2(ours_v2.series(name), rows.SERIES)
        assert in_order(theirs, "SeriesInstanceUID") == in_order(mine, "SeriesInstanceUID")


def test_updated_series(said: Asked, ours_v2: NbiaClient) -> None:
    days = (SINCE, EVER, *GUESSED.values())
    for theirs, day in zip(said.answers["updated"].values(), days, strict=True):
        mine = rows.sent_v2(ours_v2.updated_series(day), rows.SERIES_SHORT)
        assert in_order(theirs, "SeriesInstanceUID") == in_order(mine, "SeriesInstanceUID")
        assert mine


def test_a_day_is_guessed_month_first(said: Asked, ours_v2: NbiaClient) -> None:
    # Read as the guide writes it, day first, it would have found fewer.
    assert len(said.answers["updated"]["04/08/2018"]) > ours_v2.updated_series(date(2018, 8, 4)).num_rows


def test_metadata(said: Asked, ours_v2: NbiaClient) -> None:
    uids = said.questions["metadata"]
    mine = {row["SeriesInstanceUID"]: row for row in ours_v2.series_metadata(uids, single=True).to_pylist()}
    names = said.questions["collections"]
    series = {row["SeriesInstanceUID"]: row for n in names for row in ours_v2.series(n).to_pylist()}
    studies = {row["StudyInstanceUID"]: row for n in names for row in ours_v2.studies(n).to_pylist()}
    theirs = said.answers["metadata"]
    assert set(theirs) == set(mine) == set(uids)
    for uid, [row] in theirs.items():
        # What only its call sends, and ours adds to the bulk call, which sends of the release the day.
        study = studies[mine[uid]["StudyInstanceUID"]]
        assert row.pop("SOP Class UID") == mine[uid]["SOPClassUID"]
        assert row.pop("Annotation Size") == str(mine[uid]["AnnotationSize"])
        assert row.pop("File Location") == mine[uid]["StudyID"] == study["StudyID"]
        assert row.pop("TimeStamp") == _java(series[uid]["TimeStamp"]) == _java(mine[uid]["TimeStamp"])
        assert row.pop("Date Released", None) == _java(series[uid]["DateReleased"])
        assert _day(mine[uid]["DateReleased"]) == _day(series[uid]["DateReleased"])
        assert row == _meta27(mine[uid])


def test_metadata_takes_one_call_for_each_series(said: Asked) -> None:
    calls = [r for r in said.seen if r.endpoint == "getSeriesMetaData"]
    assert len(calls) == len(said.questions["metadata"])
    assert {r.path for r in calls} == {"/services/v1/getSeriesMetaData"}


def test_downloaded_files(said: Asked, ours_v2: NbiaClient) -> None:
    for uid in said.questions["downloads"]:
        assert said.answers["downloaded"][uid] is True
        mine = rows.our_files(ours_v2, uid)
        assert rows.their_files(said.folder / uid) == mine
        assert set(mine) == set(ours_v2.sop_instance_uids(uid))
        # It names files by what is in them, cuts the UID to five characters, and keeps no digests.
        folders = {p.parent for p in (said.folder / uid).rglob("*") if p.is_file()}
        assert [f.name[-5:] for f in folders] == [uid[-5:]]
        assert not list((said.folder / uid).rglob("md5hashes.csv"))


def test_references_are_found_in_the_tags_of_a_structure_set_only(said: Asked) -> None:
    answers = said.answers["references"]
    assert answers[demo.uid(demo.FIRST_SEG)] == "ValueError: Series is not an RTSTRUCT."
    for structures in (demo.STRUCTURES, demo.SECOND_STRUCTURES):
        assert set(answers[demo.uid(structures)]) == rows.stated_series(demo.uid(structures))


def test_nothing_is_an_error(said: Asked, ours_v2: NbiaClient) -> None:
    assert said.answers["unknown"] == EMPTY
    assert ours_v2.series("No Such Collection").num_rows == 0


def test_new_patients_are_those_after_the_day(said: Asked, ours_v2: NbiaClient) -> None:
    # Ours are those of the day or later, as v4 has it.
    the_day_after = SINCE + timedelta(days=1)
    for name, theirs in said.answers["new_patients"].items():
        mine = in_order(rows.sent_v2(ours_v2.new_patients(name, the_day_after), rows.PATIENT), "PatientId")
        assert mine == ([] if theirs == EMPTY else in_order(theirs, "PatientId"))
    missed = ours_v2.new_patients("TCGA-DEMO", SINCE).num_rows - len(said.answers["new_patients"]["TCGA-DEMO"])
    assert missed == 1
    assert EMPTY in said.answers["new_patients"].values()


def test_refused(said: Asked, ours_v2: NbiaClient) -> None:
    assert said.answers["refused"] is False
    with pytest.raises(NotAvailable):
        rows.our_files(ours_v2, "1.2.3")


def test_it_logs_in_twice_and_never_out(said: Asked) -> None:
    assert [r.endpoint for r in said.seen[:2]] == ["token", "token"]
    assert sum(r.endpoint == "token" for r in said.seen) == 2
    # It asks with GET where the server takes POST; the token lives on.
    assert said.answers["logout_said"].startswith("500 Server Error")
    assert said.answers["status_after_logout"] == 200


def _meta27(row: dict[str, Any]) -> dict[str, str]:
    """Return our metadata as getSeriesMetaData sends it: all text, sanitised, in Java's dates."""
    texts = {
        "Series UID": row["SeriesInstanceUID"],
        "Collection": row["Collection"],
        "3rd Party Analysis": row["ThirdPartyAnalysis"],
        "Data Description URI": row["CollectionURI"],
        "Subject ID": row["PatientID"],
        "Study UID": row["StudyInstanceUID"],
        "Study Description": _sanitised(row["StudyDescription"]),
        "Study Date": f"{row['StudyDate']:%m-%d-%Y}",
        "Series Description": _sanitised(row["SeriesDescription"]),
        "Manufacturer": row["Manufacturer"].replace(",", " "),
        "Modality": row["Modality"],
        "Number of Images": str(row["ImageCount"]),
        "File Size": str(row["FileSize"]),
        "Series Number": f"{row['SeriesNumber']}.000000",
        "License Name": row["LicenseName"],
        "License URL": row["LicenseURI"],
        "Series Date": _java(row["SeriesDate"]),
        "Protocol Name": row["ProtocolName"],
        "Body Part Examined": row["BodyPartExamined"],
        # The server says whether the column is set, whatever it says.
        "Annotations Flag": "false" if row["AnnotationsFlag"] is None else "true",
        "Manufacturer Model Name": row["ManufacturerModelName"],
        "Software Versions": row["SoftwareVersions"],
    }
    return {key: text for key, text in texts.items() if text is not None}


def _sanitised(text: str | None) -> str | None:
    return None if text is None else re.sub(r"[^A-Za-z0-9 .\-]", "", text)


def _day(value: datetime | None) -> date | None:
    return None if value is None else value.date()


def _java(value: date | datetime | None) -> str | None:
    """Write a date as Java does; the zone is the embedded archive's."""
    return None if value is None else f"{value:%a %b %d} {value:%H:%M:%S} CDT {value:%Y}"
