"""Executors: by default the process of the run, for all steps; another one for images, if the settings name one."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import dagster as dg

from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline.text import shown

# --- one process

PAUSE_SECONDS = 0.2


@contextmanager
def pauses(*, interruptible: bool = False) -> Iterator[None]:
    """Let Dagster's executor of one process pause between two looks for a slot, which else take a whole core.

    It means to sleep, but takes the least of 0 and the time that is left: `interval_to_next_pending_claim_check`.

    Args:
        interruptible: whether an interrupt that Dagster caught ends its waiting for a slot, or to retry a step. Not in
            a command, which handles the signals itself.
    """
    try:
        from dagster._core.errors import raise_execution_interrupts
        from dagster._core.execution.plan.active import ActiveExecution

        wait = ActiveExecution.sleep_til_ready
    except (ImportError, AttributeError):  # not a public name: with another version it waits as it does
        yield
        return

    def sleep_til_ready(self: ActiveExecution) -> None:  # signals know it by this name
        with raise_execution_interrupts() if interruptible else nullcontext():
            wait(self)
            time.sleep(PAUSE_SECONDS)

    ActiveExecution.sleep_til_ready = sleep_til_ready  # type: ignore[method-assign]
    try:
        yield
    finally:
        ActiveExecution.sleep_til_ready = wait  # type: ignore[method-assign]


class _OneProcess(dg.Executor):
    """Dagster's executor of one process, with pauses, and which can be terminated while it waits."""

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> Any:
        """How steps are tried again."""
        return self._executor.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Execute the steps."""
        with pauses(interruptible=True):
            yield from self._executor.execute(plan_context, execution_plan)


_theirs: Any = dg.in_process_executor

one_process = dg.ExecutorDefinition(
    _theirs.name,
    config_schema=_theirs.config_schema,
    executor_creation_fn=lambda context: _OneProcess(_theirs.executor_creation_fn(context)),
    description="Executes all steps in the process of the run.",
)


# --- where the steps of images run

EXECUTORS = {
    "in_process": (__name__, "one_process", ""),
    "multiprocess": ("dagster", "multiprocess_executor", ""),
    "celery": ("dagster_celery", "celery_executor", "celery"),
    "ray": ("dagster_ray", "ray_executor", "ray"),
    "k8s": ("dagster_k8s", "k8s_job_executor", "k8s"),
}
"""The executors that can be named: their module, their name in it, and the extra that installs it."""


def executor_of(settings: Settings) -> dg.ExecutorDefinition | None:
    """Return the executor that the settings name, None if they name none.

    Raises:
        SettingsError: it is not known or not installed, or does not take its configuration.
    """
    if not settings.executor:
        return None
    given = {settings.executor: {}} if isinstance(settings.executor, str) else settings.executor
    name, config = next(iter(given.items()))
    module, attribute, extra = EXECUTORS.get(name) or (*name.partition(":")[::2], "")
    what = f"{settings.name_of('executor')} is {name!r}"
    if not (module and attribute):
        raise SettingsError(f"{what}: set it to {', '.join(EXECUTORS)}, or to an executor of yours as module:name")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as e:
        remedy = f"pip install 'nbia-pipeline[{extra}]'" if extra else "check its name, and that it is installed"
        raise SettingsError(f"{what}, and {module} cannot be imported ({shown(str(e))}): {remedy}") from e
    except AttributeError:
        found = None
    if not isinstance(found, dg.ExecutorDefinition):
        raise SettingsError(f"{what}, and {module} has no executor {attribute!r}: check its name")
    key = json.dumps([name, config], sort_keys=True)
    if key not in _made:
        _made[key] = _configured(found, config, settings)
    return _made[key]


# Dagster wants one executor for all definitions of a location: two archives with the same configuration share it.
_made: dict[str, dg.ExecutorDefinition] = {}


def _configured(executor: dg.ExecutorDefinition, config: dict[str, Any], settings: Settings) -> dg.ExecutorDefinition:
    if not config:
        return executor
    empty = dg.GraphDefinition(name="empty").to_job(executor_def=executor)
    try:
        dg.validate_run_config(empty, {"execution": {"config": config}})
    except dg.DagsterInvalidConfigError as e:
        # A variable that it names need not be set where the definitions are only loaded.
        wrong = [error.message for error in e.errors if not error.message.startswith("Post processing")]
        if wrong:
            raise SettingsError(
                f"the configuration in {settings.name_of('executor')} is not one of {executor.name}: "
                f"{shown(' '.join(wrong))}"
            ) from None
    return executor.configured(config, name=executor.name)
