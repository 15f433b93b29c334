"""The main job as one job of the UI: a single click mirrors everything that is set.

Its one step runs the jobs of the catalog, the tables and the images in its own process, as runs of their own that name
it in a tag. Its log has their plans and their progress, its metadata the summary.
"""

import os
import signal
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
from pydantic import Field

from nbia_pipeline.defs.assets.images import ImagesConfig, short_config
from nbia_pipeline.defs.executor import one_process
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.jobs import ARCHIVE_TAG, MIRROR_JOB, RETRY_WHOLE
from nbia_pipeline.defs.main_job import Outcome, run_main_job
from nbia_pipeline.defs.metadata import records
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.records import kept_open
from nbia_pipeline.defs.slots import watched
from nbia_pipeline.schema.tables import COUNTED
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import shown, size_text

PARENT_TAG = "nbia/parent_run"
"""Tag of the runs that a run of this job consists of: its ID."""

DESCRIPTION = (
    "Mirrors everything that the settings select, in order: the catalog, the tables of each collection, the images. "
    "Each part is a "
    "run of its own in the process of this one, which shows the progress of all. Launch it as it is, or with a "
    "selection, such as `modalities: [CT]` or `max_bytes: 1000000000`."
)
PROBLEMS = 10


class MirrorConfig(ImagesConfig):
    """What one run of the main job mirrors."""

    collections: list[str] = Field(
        default=[], description="Only these of the configured collections: names, or globs such as TCGA-*. None: all."
    )
    allow_lost_columns: bool = Field(
        default=False, description="Accept answers in which a column is empty that used to be full."
    )


class _Terminated:
    """The request to stop that *Terminate* records before it sends a signal."""

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._instance, self._run_id = context.instance, context.run_id

    @property
    def signal(self) -> int | None:
        """That of an interrupt, if the run is being terminated."""
        run = self._instance.get_run_by_id(self._run_id)
        ending = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
        return signal.SIGINT if run is not None and run.status in ending else None

    def arm(self) -> None:
        """Do nothing: Dagster handles the signals of a run that a code server launched."""

    def request(self, run_id: str) -> None:
        """Terminate the run of this process, because somebody terminated a part of it."""
        run = self._instance.get_run_by_id(self._run_id)
        if run is not None and self.signal is None:
            self._instance.report_run_canceling(run, f"its part {run_id} was terminated")
            os.kill(os.getpid(), signal.SIGINT)


def build_mirror_job(naming: Naming, settings: Settings, job_of: Callable[[str], dg.JobDefinition]) -> dg.JobDefinition:
    """Return the main job of one archive; `job_of` returns its other jobs by their names."""

    @dg.op(
        name=naming.of("mirror_everything"),
        out=dg.Out(dg.Nothing),
        config_schema=MirrorConfig.to_config_schema().as_field(),
    )
    def mirror(context: dg.OpExecutionContext) -> Any:
        config = MirrorConfig(**context.op_config)
        stop, tell = _Terminated(context), lambda line: context.log.info(shown(line.strip()))
        with (
            as_failure(settings),
            kept_open(),
            watched(context.instance, naming.pool, lambda line: context.log.warning(shown(line)), stop.request),
        ):
            outcome = run_main_job(
                settings,
                naming,
                job_of,
                context.instance,
                tell,
                _images(config),
                collections=config.collections,
                allow_lost_columns=config.allow_lost_columns,
                tags={ARCHIVE_TAG: naming.prefix, PARENT_TAG: context.run_id},
                stop=stop,
            )
        if outcome.interrupted:
            raise dg.DagsterExecutionInterruptedError
        if outcome.problems:
            raise dg.Failure(_problems(outcome), metadata=figures(outcome), allow_retries=False)
        yield dg.Output(None, metadata=figures(outcome))

    @dg.graph(name=naming.of(MIRROR_JOB))
    def main_job() -> None:
        mirror()

    return main_job.to_job(
        description=DESCRIPTION,
        config=short_config(MirrorConfig, mirror, of_job=True),
        tags={ARCHIVE_TAG: naming.prefix, **RETRY_WHOLE},
        executor_def=one_process,
    )


def _images(config: MirrorConfig) -> Mapping[str, Any]:
    """Return which images are asked for: the fields that were changed."""
    given = {name: getattr(config, name) for name in ImagesConfig.model_fields}
    return {name: value for name, value in given.items() if value != ImagesConfig.model_fields[name].default}


def _problems(outcome: Outcome) -> str:
    problems = outcome.problems
    return shown(f"{len(problems)} problems: {'; '.join(problems[:PROBLEMS])}" if len(problems) > 1 else problems[0])


def figures(outcome: Outcome) -> dict[str, Any]:
    """Return what the lake has now and what the run did, as metadata for the UI."""
    rows: list[dict[str, str | int]] = [
        {
            "collection": name,
            **{table.name: n[table.name] for table in COUNTED},
            "images": f"{n['complete']} of {n['wanted']}" if n["wanted"] or n["complete"] else "not mirrored",
            "files": n["files"],
            "size": size_text(n["bytes"]),
        }
        for name, n in outcome.collections.items()
    ]
    columns = {name: "string" if isinstance(value, str) else "int" for name, value in rows[0].items()} if rows else {}
    did = outcome.fetched
    return {
        # First, so that the run's page shows it without a click.
        **({"contact_sheet": outcome.contact_sheet} if outcome.contact_sheet else {}),
        **({"in_the_lake": records(rows, columns)} if rows else {}),
        "fetched": f"{did['fetched_series']} series, {did['fetched_files']} files, {size_text(did['fetched_bytes'])}",
        **({"referenced": _referenced(did)} if "referenced_series" in did else {}),
        "already_in_the_lake": did["skipped_series"],
        "left_for_later": did["left_series"],
        **({"problems": records({"problem": text} for text in outcome.problems)} if outcome.problems else {}),
        **(
            {"warnings": records({"check": n, "found": w} for n, w in outcome.warnings.items())}
            if outcome.warnings
            else {}
        ),
        "duration": ", ".join(f"{what} {seconds:.1f} s" for what, seconds in outcome.seconds.items()),
        **{f"run: {label}": dg.MetadataValue.dagster_run(run_id) for label, run_id in outcome.runs.items()},
    }


def _referenced(did: Mapping[str, int]) -> str:
    fetched = f"{did['referenced_series']} series, {size_text(did['referenced_bytes'])}"
    return f"{fetched}; {did['referenced_not_found']} could not be resolved"
