"""The values for Dagster's chart, and the Jobs of our steps that follow from them. No cluster ran them."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.definitions.reconstruct import ReconstructableRepository

from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline_tests.deploy.render import RENDERED, digest_of_values, render
from nbia_pipeline_tests.helpers.kubernetes import Job, cluster, container
from nbia_pipeline_tests.helpers.pipeline import QIN
from nbia_pipeline_tests.helpers.postgres import postgres

FOUND = json.loads(RENDERED.read_text())
SECRETS = {"AWS_ACCESS_KEY_ID": "the-key-of-the-lake", "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-lake"}
HOME = "/opt/dagster/dagster_home"


def given() -> dict[str, str]:
    return {each["name"]: each["value"] for each in FOUND["context"]["k8s"]["env"]}


def test_what_the_chart_made_was_made_of_these_values() -> None:
    assert FOUND["values"] == digest_of_values(), "run: python -m nbia_pipeline_tests.deploy.render CHART"


def test_the_chart_makes_the_same_again() -> None:
    chart = os.environ.get("NBIA_TEST_CHART")
    if not chart or not shutil.which("helm"):
        pytest.skip("needs Helm, and a copy of Dagster's chart that NBIA_TEST_CHART names")
    assert render(Path(chart)) == FOUND


def test_the_settings_are_ours() -> None:
    settings = Settings.from_env({**given(), "NBIA_IMAGES": "LIDC-IDRI"})
    assert settings.lake == "s3://nbia-lake/tcia"
    assert isinstance(settings.executor, dict)


@contextmanager
def instance(folder: Path, kubeconfig: Path, variables: dict[str, str]) -> Iterator[dg.DagsterInstance]:
    """The instance of the chart, on a PostgreSQL of ours, which talks to the stand-in."""
    text = json.dumps(FOUND["instance"]).replace('"hostname": "postgres.example.org"', '"hostname": "127.0.0.1"')
    config = json.loads(text.replace('"port": 5432', f'"port": {variables["DAGSTER_PG_PORT"]}'))
    config["run_launcher"]["config"].update(load_incluster_config=False, kubeconfig_file=str(kubeconfig))
    (folder / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(folder)) as made:
        yield made


@pytest.mark.slow
def test_the_steps_of_images_are_executed_by_their_jobs(
    demo_archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--every-moment"):
        pytest.skip("takes half a minute and more: make test-stop")
    home, lake = tmp_path / "home", str(tmp_path / "lake")
    home.mkdir()
    here = {
        "NBIA_ARCHIVE": demo_archive,
        "NBIA_API": "v2",
        "NBIA_LAKE": lake,
        "NBIA_COLLECTIONS": QIN,
        "NBIA_IMAGES": QIN,
    }

    def environment(job: Job) -> dict[str, str]:
        pod = container(job)
        told = {each["name"]: each["value"] for each in pod["env"] if "value" in each}
        assert told["DAGSTER_HOME"] == HOME
        return {
            **{name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ},
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DAGSTER_PG_PASSWORD": server.password,
            **SECRETS,
            **told,
            **here,
            "TMPDIR": str(tmp_path),
        }

    with postgres() as server, cluster(tmp_path, environment) as (kubeconfig, made):
        for name, value in {**given(), **here, **server.variables}.items():
            monkeypatch.setenv(name, value)
        with instance(home, kubeconfig, server.variables) as records:
            repository = ReconstructableRepository.for_module(
                "nbia_pipeline.definitions", "defs", container_image=FOUND["image"], container_context=FOUND["context"]
            )
            records.add_dynamic_partitions("nbia_collections", [QIN])
            images = repository.get_reconstructable_job("nbia_images").get_subset(
                asset_selection={dg.AssetKey(["nbia", "images"])}, asset_check_selection=set()
            )
            for whole in (repository.get_reconstructable_job("nbia_tables"), images):
                result = dg.execute_job(whole, records, tags={"dagster/partition": QIN})
                assert result.success, (tmp_path / "pods.log").read_text()[-3000:]
        slots = server.psql('SELECT concurrency_key, "limit" FROM concurrency_limits')
    assert Lake(lake).read_table(IMAGE_SERIES, QIN)["Status"].to_pylist() == ["complete"] * 5
    assert slots == "nbia_api|4"  # the pool of the step that fetches, with the limit of the values
    # Nothing is written where a container may not write: neither where the instance is, nor to the home of a pod.
    assert [path.name for path in home.iterdir()] == ["dagster.yaml"]
    assert not Path(HOME).exists()
    jobs = {step_of(job): job for job in made.jobs.values()}
    assert list(jobs) == ["plan_images", "fetch_images[b00000]", "finish_images"]
    for job in jobs.values():
        check(job)
    assert resources(jobs["plan_images"]) == resources(jobs["finish_images"]) == FOUND["context"]["k8s"]["resources"]
    assert resources(jobs["fetch_images[b00000]"]) == {
        "requests": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "24Gi"},
        "limits": {"memory": "2Gi", "ephemeral-storage": "26Gi"},
    }
    secret = (*SECRETS.values(), server.password)
    assert [text for job in jobs.values() for text in secret if text in told_by(job)] == []


def step_of(job: Job) -> str:
    (key,) = (str(e["value"]) for e in container(job)["env"] if e["name"] == "DAGSTER_RUN_STEP_KEY")
    return key.partition(".nbia_")[2]


def resources(job: Job) -> dict[str, Any]:
    found: dict[str, Any] = container(job)["resources"]
    return found


def told_by(job: Job) -> str:
    """All of a Job as text, and what its arguments contain."""
    packed = next(e["value"] for e in container(job)["env"] if e["name"] == "DAGSTER_COMPRESSED_EXECUTE_STEP_ARGS")
    return json.dumps(job) + zlib.decompress(base64.b64decode(packed)).decode()


def check(job: Job) -> None:
    """What all steps have in common: image, variables, volumes, rights, and an end."""
    pod, spec = container(job), job["spec"]["template"]["spec"]
    assert job["metadata"]["labels"]["dagster/job"] == "nbia_images"
    assert job["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "nbia"
    assert (job["spec"]["backoffLimit"], job["spec"]["ttlSecondsAfterFinished"]) == (0, 86400)
    assert pod["image"] == "registry.example.org/nbia-pipeline:1"
    assert pod["args"] == ["dagster", "api", "execute_step"]
    told = {each["name"]: each.get("value") for each in pod["env"]}
    assert {**told, **given(), "DAGSTER_HOME": HOME} == told
    (password,) = (each for each in pod["env"] if each["name"] == "DAGSTER_PG_PASSWORD")
    assert password["valueFrom"]["secretKeyRef"] == {"name": "nbia-postgres", "key": "postgresql-password"}
    assert {"secretRef": {"name": "nbia"}} in pod["envFrom"]
    mounts = {each["mountPath"]: each["name"] for each in pod["volumeMounts"]}
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert volumes[mounts["/scratch"]]["emptyDir"] == {"sizeLimit": "24Gi"}
    assert told["TMPDIR"] == "/scratch"
    assert pod["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["restartPolicy"] == "Never"
    assert spec["serviceAccountName"] == FOUND["context"]["k8s"]["service_account_name"]
