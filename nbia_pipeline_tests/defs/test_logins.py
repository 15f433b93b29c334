"""Logins: one for all steps that share a process, given back at the end of the run, and none left to an interrupt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from nbia_pipeline.archive import ClientOptions, LoginRefused
from nbia_pipeline.cli.run import run_main_job
from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs import resources
from nbia_pipeline.defs.resources import NbiaResource, one_login
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.helpers.archives import TestArchive
from nbia_pipeline_tests.helpers.faults import answer

ROOT = Path(__file__).parents[2]  # so that the job can be made again
QIN = "QIN_Breast.v2"


@pytest.fixture
def nbia(archive: TestArchive) -> Iterator[NbiaResource]:
    yield NbiaResource(archive=archive.url, tries=1)
    assert resources._logins._clients == {}


def logins(archive: TestArchive) -> tuple[int, int]:
    """Return how many logins and logouts the archive saw."""
    return archive.faults.count("token"), archive.faults.count("logout")


# --- runs


def test_the_main_job_logs_in_once_and_asks_for_each_thing_once(archive: TestArchive, tmp_path: Path) -> None:
    settings = Settings(archive=archive.url, lake=str(tmp_path / "lake"), collections=(QIN,), images=(QIN,), headers=())
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        outcome = run_main_job(settings, instance)
    assert outcome.problems == []
    assert outcome.fetched["fetched_series"] == 5
    assert logins(archive) == (1, 1)
    asked = {name: archive.faults.count(name) for name in ("getImage", "getImageWithMD5Hash", "getMD5Hierarchy")}
    assert asked == {"getImage": 1, "getImageWithMD5Hash": 5, "getMD5Hierarchy": 5}


def catalog_job(url: str, lake: str) -> dg.JobDefinition:
    """Return the job, as the process of a run builds it."""
    return build_definitions(Settings(archive=url, lake=lake)).resolve_job_def("nbia_catalogue")


def test_a_run_of_the_ui_has_the_steps_of_the_catalog_in_one_process_with_one_login(
    archive: TestArchive, tmp_path: Path
) -> None:
    given = {"url": archive.url, "lake": str(tmp_path / "lake")}
    job = dg.build_reconstructable_job(
        __name__, "catalog_job", reconstructable_kwargs=given, reconstructor_working_directory=str(ROOT)
    )
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        run = dg.execute_job(job, instance=instance)
        assert run.success
    assert f"Executing steps in process (pid: {os.getpid()})" in [event.message for event in run.all_events]
    assert len([e for e in run.all_events if e.is_step_success]) == 5
    assert logins(archive) == (1, 1)


@pytest.mark.parametrize(("executor", "of_images"), [(None, "in_process"), ("multiprocess", "multiprocess")])
def test_short_jobs_are_one_process_and_those_with_images_are_as_the_settings_say(
    executor: str | None, of_images: str
) -> None:
    definitions = build_definitions(Settings(lake="/nowhere", executor=executor))
    expected = {
        "catalogue": "in_process",
        "tables": "in_process",
        "images": of_images,
        "update": of_images,
        "cart": of_images,
    }
    jobs = {name: definitions.resolve_job_def(f"nbia_{name}") for name in expected}
    assert {name: job.executor_def.name for name, job in jobs.items()} == expected


# --- the resource


def test_alone_a_client_logs_out_at_its_end(archive: TestArchive, nbia: NbiaResource) -> None:
    for number in (1, 2):
        with nbia.client() as client:
            client.collection_values()
        assert logins(archive) == (number, number)


def test_clients_share_a_login_until_the_last_run_ends(archive: TestArchive, nbia: NbiaResource) -> None:
    with one_login():
        with one_login(), nbia.client() as client:
            client.collection_values()
        with nbia.client(ClientOptions(tries=7)) as client:
            client.collection_values()
        with NbiaResource(archive=archive.url).client() as client:
            client.collection_values()
        assert logins(archive) == (1, 0)
        stranger = NbiaResource(archive=archive.url, username="demo_member", password="wrong")
        with stranger.client() as other, pytest.raises(LoginRefused):
            other.collection_values()
        assert logins(archive)[0] == 2
    assert logins(archive)[1] == 1


def test_what_one_step_had_to_do_without_is_no_warning_of_the_next(archive: TestArchive, nbia: NbiaResource) -> None:
    archive.faults.inject("getCollectionValuesAndCounts", answer(404), times=1)
    with one_login():
        with nbia.client() as client:
            assert client.optional("counts", client.collection_counts, "the counts") is None
            assert len(client.warnings) == 1
        with nbia.client() as client:
            assert client.optional("counts", client.collection_counts, "the counts")
            assert client.warnings == []
    assert logins(archive) == (1, 1)


def test_a_token_that_expires_between_two_steps_is_replaced(archive: TestArchive, nbia: NbiaResource) -> None:
    with one_login():
        for _ in range(2):
            with nbia.client() as client:
                assert QIN in client.collection_values()
            archive.tokens.expire_all()
    assert archive.faults.count("token") == 2


@pytest.mark.parametrize("inside", [True, False], ids=["in a step", "between two"])
def test_an_interrupt_waits_for_no_logout(archive: TestArchive, nbia: NbiaResource, inside: bool) -> None:
    with pytest.raises(KeyboardInterrupt), one_login():
        with nbia.client() as client:
            client.collection_values()
            if inside:
                raise KeyboardInterrupt
        raise KeyboardInterrupt
    assert logins(archive) == (1, 0)


def test_a_step_that_fails_does_not_keep_the_run_from_logging_out(archive: TestArchive, nbia: NbiaResource) -> None:
    with one_login(), pytest.raises(ValueError, match="broken"), nbia.client() as client:
        client.collection_values()
        raise ValueError("broken")
    assert logins(archive) == (1, 1)


def test_a_forked_process_does_not_use_the_connections_of_its_parent(archive: TestArchive, nbia: NbiaResource) -> None:
    with one_login(), nbia.client() as client:
        client.collection_values()
        child = os.fork()
        if child == 0:
            os._exit(len(resources._logins._clients))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(resources._logins._clients) == 1
