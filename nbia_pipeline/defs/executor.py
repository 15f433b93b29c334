"""The executor of jobs whose steps are short: all in the process of the run, which pauses while it waits for a slot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg

PAUSE_SECONDS = 0.2


@contextmanager
def pauses() -> Iterator[None]:
    """Let Dagster's executor of one process pause between two looks for a slot, which else take a whole core.

    It means to sleep, but takes the least of 0 and the time that is left: `interval_to_next_pending_claim_check`.
    """
    try:
        from dagster._core.execution.plan.active import ActiveExecution

        wait = ActiveExecution.sleep_til_ready
    except (ImportError, AttributeError):  # not a public name: with another version it waits as it does
        yield
        return

    def sleep_til_ready(self: ActiveExecution) -> None:  # signals know it by this name
        wait(self)
        time.sleep(PAUSE_SECONDS)

    ActiveExecution.sleep_til_ready = sleep_til_ready  # type: ignore[method-assign]
    try:
        yield
    finally:
        ActiveExecution.sleep_til_ready = wait  # type: ignore[method-assign]


class _OneProcess(dg.Executor):
    """Dagster's executor of one process, with pauses."""

    def __init__(self, executor: dg.Executor) -> None:
        self._executor = executor

    @property
    def retries(self) -> Any:
        """How steps are tried again."""
        return self._executor.retries

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        """Execute the steps."""
        with pauses():
            yield from self._executor.execute(plan_context, execution_plan)


_theirs: Any = dg.in_process_executor

one_process = dg.ExecutorDefinition(
    _theirs.name,
    config_schema=_theirs.config_schema,
    executor_creation_fn=lambda context: _OneProcess(_theirs.executor_creation_fn(context)),
    description="Executes all steps in the process of the run.",
)
