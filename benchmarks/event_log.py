"""What Dagster's records grow by: of a tick, of the run for one collection, of a night over 200 collections.

An embedded archive has 25 small collections: as many as one run of the nightly schedule lists, and 200 are eight such
runs. Sensor and jobs run as the daemon starts them, on an instance in SQLite and on one in PostgreSQL (left out where
there is none). Counted are rows, and bytes on the disk: all database files of SQLite, the size of the database in
PostgreSQL, both after each has written out what it holds back. Then follows what a day adds up to, for some
configurations. Steps that have a process of their own write a few events more.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results import Results, add_option
from tick import _QUIET, SENSOR, archive

if TYPE_CHECKING:
    import dagster as dg

ROOT = Path(__file__).resolve().parent.parent
NEW = "Grows"
COLLECTIONS = 25
NIGHT = 8
TICKS = 10
RUNS = 2
DAY_BYTES = 50e6

WHAT = {
    "tick": "tick of a sensor, nothing new",
    "update": "run of one collection, tables and images",
    "catalog": "run of the catalog",
    "listed": f"run over {COLLECTIONS} collections, tables",
}


@dataclass(frozen=True)
class Grown:
    """What something adds to the records: rows and bytes, each time."""

    rows: float
    bytes: float


class Records:
    """An instance of Dagster whose rows and bytes can be counted."""

    def __init__(self, name: str, home: Path, sql: Callable[[str], str] | None) -> None:
        import dagster as dg

        self.name, self._home, self._sql = name, home, sql
        self.instance = dg.DagsterInstance.from_config(str(home))

    def size(self) -> Grown:
        """Return rows and bytes now."""
        if self._sql is not None:
            self._sql("CHECKPOINT")
            tables = self._sql("SELECT relname FROM pg_stat_user_tables ORDER BY 1").split()
            rows = sum(int(self._sql(f"SELECT count(*) FROM {table}")) for table in tables)
            return Grown(rows, int(self._sql("SELECT pg_database_size(current_database())")))
        rows = size = 0
        for file in self._home.rglob("*.db"):
            with contextlib.closing(sqlite3.connect(file)) as opened:
                opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                found = opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
                rows += sum(opened.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for (name,) in found)
            size += file.stat().st_size
        return Grown(rows, size)

    def grown_by(self, times: int, do: Callable[[int], object]) -> Grown:
        """Do something some times, and return what each of them adds."""
        before = self.size()
        for number in range(times):
            do(number)
        after = self.size()
        return Grown((after.rows - before.rows) / times, (after.bytes - before.bytes) / times)


@contextlib.contextmanager
def in_sqlite(folder: Path) -> Iterator[Records]:
    """Yield records in SQLite."""
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    records = Records("SQLite", folder, None)
    yield records
    records.instance.dispose()


@contextlib.contextmanager
def in_postgres(folder: Path) -> Iterator[Records | None]:
    """Yield records in PostgreSQL, set up as in deploy/; None where there is none."""
    sys.path.insert(0, str(ROOT))
    from nbia_pipeline_tests.helpers.postgres import postgres

    shutil.copy(ROOT / "deploy" / "dagster.yaml", folder)
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(postgres())
        except BaseException as e:
            if type(e).__name__ != "Skipped":  # of pytest
                raise
            print(f"without PostgreSQL: {e}")
            yield None
            return
        os.environ.update(server.variables)
        records = Records("PostgreSQL", folder, server.psql)
        yield records
        records.instance.dispose()


def measure(records: Records, url: str, control: Any, lake: Path, results: Results) -> dict[str, Grown]:
    """Return what each kind of work adds."""
    import datetime as dt

    import dagster as dg

    from nbia_pipeline.definitions import build_definitions
    from nbia_pipeline.settings import Settings

    definitions = build_definitions(Settings(archive=url, lake=str(lake), images=(NEW,), executor="in_process"))
    repository = definitions.get_repository_def()

    def run(job: str, **how: Any) -> None:
        done = definitions.resolve_job_def(job).execute_in_process(
            instance=records.instance, run_config=_QUIET, raise_on_error=False, **how
        )
        if not done.success:
            why = [e.step_failure_data.user_failure_data for e in done.all_events if e.is_step_failure]
            raise SystemExit(f"{job} failed: {why}")

    def listed(_: int) -> None:
        with dg.build_schedule_context(
            instance=records.instance, repository_def=repository, resources=dict(definitions.resources or {})
        ) as context:
            requests = repository.get_schedule_def("nbia_reconcile").evaluate_tick(context).run_requests
        if len(requests) != 1:
            raise SystemExit(f"the schedule asks for {len(requests)} runs, not for one over all collections")
        run("nbia_tables", tags=dict(requests[0].tags))

    def update(_: int) -> None:
        control.add_series(NEW, patient="NEW-1", released=dt.datetime.now(dt.timezone.utc).date())
        run("nbia_update", partition_key=NEW)

    run("nbia_catalogue")
    listed(0)  # the first one registers keys and statuses
    update(0)
    work: dict[str, tuple[int, Callable[[int], object]]] = {
        "tick": (TICKS, lambda number: tick(records.instance, definitions, number)),
        "update": (RUNS, update),
        "catalog": (RUNS, lambda _: run("nbia_catalogue")),
        "listed": (RUNS, listed),
    }
    grown = {}
    for what, (times, do) in work.items():
        grown[what] = one = records.grown_by(times, do)
        results.add(f"{records.name}, {WHAT[what]}", (one.rows, "rows"), (one.bytes / 1000, "kB"), rounds=times)
        print(results.rows[-1].line, flush=True)
    return grown


def tick(instance: dg.DagsterInstance, definitions: Any, number: int) -> None:
    """Evaluate the sensor, and record the tick as the daemon does: what it skipped, and why."""
    import dagster as dg
    from dagster._core.definitions.run_request import InstigatorType
    from dagster._core.scheduler.instigation import TickData, TickStatus

    repository = definitions.get_repository_def()
    with dg.build_sensor_context(
        instance=instance, repository_def=repository, resources=dict(definitions.resources or {}), cursor=None
    ) as context:
        found = repository.get_sensor_def(SENSOR).evaluate_tick(context)
    data = TickData(
        instigator_origin_id="0" * 40,
        instigator_name=SENSOR,
        instigator_type=InstigatorType.SENSOR,
        status=TickStatus.STARTED,
        timestamp=1e9 + number,
        selector_id="0" * 40,
    )
    made = instance.create_tick(data)
    instance.update_tick(made.with_status(TickStatus.SKIPPED, skip_reason=found.skip_message, cursor=found.cursor))


def main() -> int:
    """Measure all, print it, and return 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="directory to work in (default: the system's for temporary files)")
    add_option(parser)
    options = parser.parse_args()
    found: dict[str, dict[str, Grown]] = {}
    results = Results(options.json)
    with archive("demo") as (url, control), tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for number in range(COLLECTIONS - 4):  # the demo has four
            control.add_series(NEW if number == 0 else f"Small {number:03d}", patient=f"P-{number}")
        for name, opened in (("SQLite", in_sqlite), ("PostgreSQL", in_postgres)):
            home = Path(folder) / name
            home.mkdir()
            with opened(home) as records:
                if records is not None:
                    found[name] = measure(records, url, control, Path(folder) / f"lake of {name}", results)
    show(found, results)
    return results.finish()


def show(found: dict[str, dict[str, Grown]], results: Results) -> None:
    """Print and keep what was found, and what a day adds up to."""
    for name, grown in found.items():
        for every, updates in ((3600, 5), (300, 20)):
            parts = {"tick": 2 * 86400 // every, "update": updates, "catalog": 1, "listed": NIGHT}
            rows = sum(grown[what].rows * times for what, times in parts.items())
            size = sum(grown[what].bytes * times for what, times in parts.items())
            night = f"a night over {NIGHT * COLLECTIONS} collections"
            what = f"{name}, a day: two sensors every {every} s, {updates} updates, {night}"
            results.add(f"{what}: rows", (round(rows), "rows"))
            print(results.rows[-1].line)
            results.at_most(DAY_BYTES / 1e6, what, size / 1e6, "MB")


if __name__ == "__main__":
    sys.exit(main())
