"""How the steps of a run hand their results to each other: as small JSON files in the staging area of the lake.

Every process that executes a step can reach the lake, wherever it runs. Dagster's own IO manager pickles to a local
disk, which only the processes of one machine share, and runs what somebody puts there.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import dagster as dg

from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.resources import LakeResource
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import hand_over_path
from nbia_pipeline.settings import Settings


class StepFiles(dg.IOManager):
    """Keeps the results of steps, plain JSON values, in ``.staging/runs`` of a lake.

    Each is replaced as a whole, so that a step that is executed twice, as some executors do after a worker died,
    leaves one of two equal results. They are removed by a later run once they are a week old.

    Args:
        resource: the lake that the images go to; it is opened by the first step that needs it.
        settings: for the texts of errors.
    """

    def __init__(self, resource: LakeResource, settings: Settings) -> None:
        self._resource = resource
        self._settings = settings

    @cached_property
    def _lake(self) -> Lake:
        return self._resource.open(write=False)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write the result of a step."""
        with as_failure(self._settings):
            self._lake.note_bytes(_path(context), json.dumps(obj).encode())

    def load_input(self, context: dg.InputContext) -> Any:
        """Return the result of an earlier step, of this run or of the one that it re-executes.

        Raises:
            Failure: it is not there, or only a part of it.
        """
        path = _path(context.upstream_output)
        with as_failure(self._settings):
            content = self._lake.read_bytes(path)
            try:
                return json.loads(content or b"")
            except ValueError:
                raise LakeError(
                    f"the result of an earlier step is not in the lake ({path}): such files are kept for a week. "
                    "Launch a new run instead of a re-execution: it fetches only what is missing"
                ) from None


def _path(output: dg.OutputContext | None) -> str:
    if output is None:
        raise dg.DagsterInvariantViolationError("this IO manager is for what steps hand to each other")
    return hand_over_path(*output.get_identifier())


def build_step_files(naming: Naming, settings: Settings) -> dg.IOManagerDefinition:
    """Return the IO manager of one archive, which uses its lake resource."""

    @dg.io_manager(required_resource_keys={naming.lake}, description="Hands results from step to step, in the lake.")
    def step_files(context: dg.InitResourceContext) -> StepFiles:
        return StepFiles(getattr(context.resources, naming.lake), settings)

    return step_files
