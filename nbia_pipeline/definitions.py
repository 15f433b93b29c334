"""The code location: everything of one archive, made from settings."""

from __future__ import annotations

import os
from dataclasses import replace

import dagster as dg

from nbia_pipeline.defs.assets import (
    build_annotations_asset,
    build_headers_asset,
    build_images_asset,
    build_references_asset,
    build_released_asset,
    build_table_assets,
)
from nbia_pipeline.defs.assets.inputs import NbiaIOManager
from nbia_pipeline.defs.cart_job import build_cart_job
from nbia_pipeline.defs.checks import build_checks
from nbia_pipeline.defs.executor import executor_of, one_process
from nbia_pipeline.defs.hand_over import build_step_files
from nbia_pipeline.defs.jobs import build_jobs
from nbia_pipeline.defs.mirror_job import build_mirror_job
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.resources import LakeResource, NbiaResource
from nbia_pipeline.defs.schedules import build_schedules
from nbia_pipeline.defs.sensors import build_sensors
from nbia_pipeline.defs.specs.conditions import build_automation, conditions_of
from nbia_pipeline.defs.specs.translator import NbiaTranslator
from nbia_pipeline.settings import Connection, Settings, variable_of

HEADERS = (build_headers_asset, build_references_asset)
PASSWORD_ENV = variable_of("password")


def build_definitions(
    settings: Settings,
    naming: Naming | None = None,
    password_env: str | None = PASSWORD_ENV,
    *,
    executor: dg.ExecutorDefinition | None = None,
    translator: NbiaTranslator | None = None,
) -> dg.Definitions:
    """Return assets, checks, jobs and resources of one archive. Touches no network and no disk.

    Args:
        settings: where the data come from and where they go.
        naming: the names of its assets; those of the first archive by default.
        password_env: name of the variable that holds the password, if one does.
        executor: where the steps of images run, and of assets that are materialized without a job; None: as the
            settings say. Where these name none, the steps of the jobs run in the process of their run, as those of the
            catalog and of the tables always do; Materialize then takes the executor of the project, if it has one.
        translator: changes keys, groups, owners and the like of the assets; None: that of `naming`.

    Raises:
        SettingsError: a schedule's cron expression is not valid, the executor of the settings is not known, or the
            translator returns what cannot be used.
    """
    naming = naming or Naming()
    conditions = naming.conditions or conditions_of(settings)
    naming = replace(naming, translator=translator or naming.translator, conditions=conditions)
    password: str | dg.EnvVar = settings.password
    if password_env and os.environ.get(password_env) == settings.password:
        password = dg.EnvVar(password_env)  # the UI then shows the variable's name, and never its value
    archive = NbiaResource(**{name: getattr(settings, name) for name in Connection.model_fields}, password=password)
    executor = executor or executor_of(settings)
    of_images = executor or one_process
    jobs = build_jobs(naming, settings, of_images)
    lake = LakeResource(uri=settings.lake, fsync=settings.fsync)
    assets = (
        *build_table_assets(naming, settings),
        build_images_asset(naming, settings),
        *([build_annotations_asset(naming, settings)] if settings.annotations else []),
        *(build(naming, settings) for build in HEADERS if settings.reads_headers),
        build_released_asset(naming, settings),
    )

    def job_of(name: str) -> dg.JobDefinition:
        return found.resolve_job_def(name)

    found = dg.Definitions(
        assets=[naming.described(asset) for asset in assets],
        asset_checks=build_checks(naming, settings),
        jobs=[
            *jobs.values(),
            build_mirror_job(naming, settings, job_of),
            build_cart_job(naming, settings, of_images),
        ],
        sensors=[*build_sensors(naming, settings, jobs), *build_automation(naming, settings)],
        schedules=build_schedules(naming, settings, jobs),
        resources={
            naming.archive: archive,
            naming.lake: lake,
            naming.io: NbiaIOManager(lake=lake, names=naming.renamed),
            naming.steps: build_step_files(naming, settings),
        },
        executor=executor,
    )
    return found


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions that the environment asks for; a wrong variable is an error that names it."""
    settings = Settings.from_env()
    return build_definitions(settings, executor=executor_of(settings) or one_process)
