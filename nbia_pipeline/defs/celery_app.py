"""The Celery app of a worker, by which a batch outlives its worker: ``dagster-celery worker start -A`` this module.

As dagster-celery sets Celery, a worker takes a task off the queue when it begins, and a run whose worker is killed
waits forever for a result that nobody makes. Here a task is taken off when it ends. If a process of the worker's pool
is killed, the task is sent again, three times at most; then the run fails. If the whole worker is killed, or its
machine, Redis gives the task to another worker once nobody has said for some seconds that it is being worked on. Redis
measures that from the beginning of the task, so that a longer one would be given to a second worker too; therefore each
worker says so again and again. A batch that is executed twice all the same leaves out what is in the lake.
"""

from __future__ import annotations

from time import time
from typing import Any

from celery import bootsteps
from dagster_celery import app as _theirs

LOST_SECONDS = 30
"""After so many seconds without a sign of its worker a task is given to another one."""
SIGN_SECONDS: float = 5
TRIES_OF_LOST = 3

app: Any = _theirs.app


class Signs(bootsteps.StartStopStep):  # type: ignore[misc]
    """Has a worker say that it works on its tasks. Other brokers than Redis see by themselves whether it is there."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Begin, once the worker takes tasks; again after each loss of the connection."""
        self.stop(consumer)
        if hasattr(consumer.task_consumer.channel.qos, "unacked_index_key"):
            self._timer = consumer.timer.call_repeatedly(SIGN_SECONDS, sign, (consumer.task_consumer.channel,))

    def stop(self, consumer: Any) -> None:
        """Stop it."""
        if timer := getattr(self, "_timer", None):
            timer.cancel()


def sign(channel: Any) -> None:
    """Say that the tasks which came through a channel of Redis, and have not ended, are being worked on."""
    tasks = dict.fromkeys(channel.qos._delivered, time())
    if tasks:
        try:
            with channel.conn_or_acquire() as redis:
                redis.zadd(channel.qos.unacked_index_key, tasks, xx=True)  # those that ended meanwhile are not there
        except channel.connection_errors:
            pass  # the worker connects again, and begins anew


app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,  # with this, a worker holds no task that it does not work on
    worker_cancel_long_running_tasks_on_connection_loss=False,  # a signal would end the run, not only the task
    broker_transport_options={
        "visibility_timeout": LOST_SECONDS,
        "unacked_restore_interval": SIGN_SECONDS,
        "unacked_restore_throttle": 1,  # else it looks ten times less often
        **app.conf.broker_transport_options,
    },
)
app.steps["consumer"].add(Signs)
_theirs.execute_plan.retry_on_worker_lost = True
_theirs.execute_plan.default_retry_delay = 1
_theirs.execute_plan.max_retries = TRIES_OF_LOST
