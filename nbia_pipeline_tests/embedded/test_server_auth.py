from __future__ import annotations

from collections.abc import Callable

import pytest
import requests

from nbia_pipeline_tests.helpers.archive_client import ArchiveClient

UNABLE = "Server was not able to process your request"
LISTS = [
    ("getBodyPartValues", {}),
    ("getManufacturerValues", {}),
    ("getModalityValues", {}),
    ("NewPatientsInCollection", {"Collection": "Alpha Set", "Date": "2000/01/01"}),
    ("NewStudiesInPatientCollection", {"Collection": "Alpha Set", "Date": "2000/01/01"}),
    ("getPatient", {}),
    ("getPatientByCollectionAndModality", {"Collection": "Alpha Set", "Modality": "CT"}),
    ("getPatientStudy", {}),
    ("getSeries", {}),
    ("getSeriesSize", {"SeriesInstanceUID": "1.1"}),
    ("getSOPInstanceUIDs", {"SeriesInstanceUID": "1.1"}),
    ("getUpdatedSeries", {}),
    ("getContentsByName", {"name": "cart"}),
]
STRICT = [
    "v2/getCollectionValues",
    "v2/getImage?SeriesInstanceUID=1.1",
    "v2/getImageWithMD5Hash?SeriesInstanceUID=1.1",
    "v2/getSingleImage?SeriesInstanceUID=1.1&SOPInstanceUID=1.1.1",
    "v2/getM5HashForImage?SOPInstanceUid=1.1.1",
    "getModalityValuesAndCounts",
    "getCollectionDescriptions",
]


@pytest.mark.parametrize(("name", "parameters"), LISTS)
@pytest.mark.parametrize("header", [None, "Bearer garbage"])
def test_lists_without_good_token_are_empty(
    site: ArchiveClient, name: str, parameters: dict[str, str], header: str | None
) -> None:
    answer = site.get(f"v2/{name}", header, **parameters)
    assert (answer.status_code, answer.content) == (200, b"")
    assert "content-type" not in answer.headers
    if name != "getContentsByName":
        assert site.get(f"v2/{name}", **parameters).content


@pytest.mark.parametrize("header", [None, "Bearer garbage"])
def test_series_metadata_without_good_token_is_204(site: ArchiveClient, header: str | None) -> None:
    answer = site.get("v2/getSeriesMetaData", header, SeriesInstanceUID="1.1")
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("path", STRICT)
def test_strict_endpoints(site: ArchiveClient, path: str) -> None:
    anonymous = site.get(path, None)
    assert (anonymous.status_code, anonymous.text) == (500, f"{UNABLE}\nnull")
    assert anonymous.headers["content-type"] == "text/plain"
    assert len(anonymous.content) == 48
    rejected = site.get(path, "Bearer garbage")
    assert (rejected.status_code, rejected.content) == (401, b"")
    assert site.get(path).status_code == 200


@pytest.mark.parametrize("header", [None, "Bearer garbage"])
def test_dicom_tags_is_a_500_of_one_line(site: ArchiveClient, header: str | None) -> None:
    answer = site.get("getDicomTags", header, SeriesUID="1.1")
    assert (answer.status_code, answer.text) == (500, UNABLE)


def test_open_endpoints(site: ArchiveClient) -> None:
    assert site.get("up", None).text == "up"
    assert site.get("getLicenses", "Bearer garbage").json()[0]["longName"].startswith("Creative Commons")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("v4/getPatient", 200),
        ("v4/getPatientStudy", 200),
        ("v4/getModalityValues", 200),
        ("v4/getDeniedSeries?seriesList=2.2", 200),
        ("v4/getCollectionValues", 401),
        ("v4/getSeries", 500),
        ("v4/getCollectionDescriptions", 500),
        ("v4/getImage?SeriesInstanceUID=1.1", 401),
        ("v4/getModalityValuesAndCounts", 401),
    ],
)
def test_v4_takes_guests_but_a_bad_token_is_worse_than_none(site: ArchiveClient, path: str, status: int) -> None:
    assert site.get(path, None).content
    assert site.get(path, None).status_code == 200
    bad = site.get(path, "Bearer garbage")
    assert bad.status_code == status
    # getDeniedSeries reads no token.
    expected = site.get(path, None).text if "Denied" in path else ""
    assert bad.text == (f"{UNABLE}\nnull" if status == 500 else expected)


@pytest.mark.parametrize(
    ("path", "form", "status", "text"),
    [
        ("v4/getSeriesMetadata", {"list": "1.1"}, 401, ""),
        ("v4/getSeriesQCInfo", {"seriesId": "1.1"}, 204, ""),
        ("v4/getMD5Hierarchy", {"SeriesInstanceUID": "1.1"}, 401, ""),
        ("v4/getCollectionOrSeriesForDOI", {}, 200, "[]"),
    ],
)
def test_v4_forms_with_a_bad_token(
    site: ArchiveClient, path: str, form: dict[str, str], status: int, text: str
) -> None:
    assert site.post(path, form, None).status_code == 200
    bad = site.post(path, form, "Bearer garbage")
    assert (bad.status_code, bad.text) == (status, text)


def test_v4_dicom_tags_with_a_bad_token_is_a_500_of_one_line(site: ArchiveClient) -> None:
    assert site.get("v4/getDicomTags", None, SeriesUID="1.1").json()
    bad = site.get("v4/getDicomTags", "Bearer garbage", SeriesUID="1.1")
    assert (bad.status_code, bad.text) == (500, UNABLE)


def test_v4_updated_series_and_size_do_not_look_at_the_token(site: ArchiveClient) -> None:
    assert site.get("v4/getUpdatedSeries", "Bearer garbage").json()
    assert site.get("v4/getSeriesSize", "Bearer garbage", SeriesInstanceUID="1.1").json()


def test_restricted_collections_are_for_those_who_hold_them(site: ArchiveClient) -> None:
    public = ["Alpha Set", "beta-set"]
    for user, password, expected in (
        ("nbia_guest", "whatever", public),
        ("other", "right", public),
        ("holder", "right", ["Alpha Set", "Secret", "beta-set"]),
    ):
        header = f"Bearer {site.token(user, password)}"
        rows = site.get("v2/getCollectionValues", header).json()
        assert sorted(row["Collection"] for row in rows) == sorted(expected)
        image = site.get("v2/getImage", header, SeriesInstanceUID="4.1")
        assert image.status_code == (200 if user == "holder" else 400)


def test_the_scheme_of_the_header_is_not_read(site: ArchiveClient) -> None:
    assert site.get("v2/getCollectionValues", f"Magic! {site.token()}").status_code == 200
    assert site.get("v2/getCollectionValues", "BEARER Undefined").status_code == 200


def test_token_reply_has_every_field(site: ArchiveClient) -> None:
    form = {"grant_type": "PASSWORD", "username": "nbia_guest", "password": "", "client_id": "anything"}
    for place in ("/oauth/token", "/services/oauth/token"):
        reply = site.session.post(site.url + place, data=form).json()
        assert reply["token_type"] == "Bearer"
        assert (reply["expires_in"], reply["refresh_expires_in"], reply["not-before-policy"]) == (7200, 7200, 0)
        for name in ("access_token", "refresh_token", "id_token", "session_state", "scope"):
            assert reply[name]


@pytest.mark.parametrize(
    ("form", "status", "error", "description"),
    [
        (
            {"grant_type": "password", "username": "other", "password": "wrong"},
            *(401, "invalid_grant", "Invalid user credentials"),
        ),
        (
            {"grant_type": "password", "username": "nobody", "password": ""},
            *(401, "invalid_grant", "Invalid user credentials"),
        ),
        (
            {"grant_type": "password", "password": "x"},
            *(400, "invalid_request", "Missing parameter: username"),
        ),
        (
            {"grant_type": "refresh_token", "refresh_token": "x", "client_id": "nbia"},
            *(400, "invalid_grant", "Invalid refresh token"),
        ),
        (
            {"grant_type": "refresh_token", "refresh_token": "x", "client_id": "NBIA"},
            *(401, "invalid_client", "Invalid client or Invalid client credentials"),
        ),
    ],
)
def test_token_errors(site: ArchiveClient, form: dict[str, str], status: int, error: str, description: str) -> None:
    answer = site.session.post(f"{site.url}/oauth/token", data=form)
    assert answer.status_code == status
    assert answer.json() == {"error": error, "error_description": description}


@pytest.mark.parametrize("form", [{"username": "nbia_guest"}, {"grant_type": "magic"}])
def test_bad_grant_types_break_the_server(site: ArchiveClient, form: dict[str, str]) -> None:
    answer = site.session.post(f"{site.url}/oauth/token", data=form)
    assert answer.status_code == 500
    assert answer.text.startswith(f"{UNABLE}\n")


def test_tokens_run_out_and_are_refreshed(make_site: Callable[..., ArchiveClient]) -> None:
    site = make_site(token_lifetime=10.0, refresh_lifetime=30.0)
    form = {"grant_type": "password", "username": "other", "password": "right"}
    first = site.session.post(f"{site.url}/oauth/token", data=form).json()
    assert (first["expires_in"], first["refresh_expires_in"]) == (10, 30)
    header = f"Bearer {first['access_token']}"
    site.clock.now += 9.9
    assert site.get("v2/getSeries", header).content
    site.clock.now += 0.2
    assert site.get("v2/getSeries", header).content == b""
    assert site.get("v2/getCollectionValues", header).status_code == 401

    refresh = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"], "client_id": "nbia"}
    second = site.session.post(f"{site.url}/oauth/token", data=refresh).json()
    assert site.get("v2/getSeries", f"Bearer {second['access_token']}").content
    site.clock.now += 100
    late = site.session.post(f"{site.url}/oauth/token", data=refresh)
    assert (late.status_code, late.json()["error_description"]) == (400, "Token is not active")


def test_logout_ends_the_session(site: ArchiveClient) -> None:
    header = f"Bearer {site.token()}"
    assert site.get("v2/getCollectionValues", header).status_code == 200
    out = site.session.post(f"{site.url}/logout", headers={"Authorization": header})
    assert (out.status_code, out.content) == (204, b"")
    assert site.get("v2/getCollectionValues", header).status_code == 401
    assert site.session.post(f"{site.url}/logout").status_code == 500


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        ("GET", "/services/v2/getNothing", "HTTP 404 Not Found"),
        ("GET", "/services/v2/getseries", "HTTP 404 Not Found"),
        ("GET", "/services/v2/getSeries/", "HTTP 404 Not Found"),
        ("POST", "/services/v2/getSeries", "HTTP 405 Method Not Allowed"),
        ("GET", "/oauth/token", "HTTP 405 Method Not Allowed"),
    ],
)
def test_routing_errors_are_500(site: ArchiveClient, method: str, path: str, reason: str) -> None:
    answer = requests.request(method, site.url + path, timeout=10)
    assert (answer.status_code, answer.text) == (500, f"{UNABLE}\n{reason}")
