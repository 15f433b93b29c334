"""Dagster's records in SQLite, without what an event costs besides being flushed.

For every statement Dagster makes an engine, which forgets the statements that it has compiled, and opens a connection.
With the first commit of a connection SQLite flushes the directory too; the last connection to a file that closes
copies the write-ahead log into it, flushes both, and removes the log. For the file of each run, Dagster also reads its
ninety scripts of migrations, twice, and makes twenty tables and indexes in a transaction each. Here engine and
connections of a file are kept: then SQLite flushes the directory once, and copies the log once in a thousand pages.
The scripts are read once, and the tables of a file are made in one transaction. Each commit is flushed as before.

To keep a copy of what steps print, Dagster starts four processes for each run, which takes longer than most steps. Here
it keeps none: what a step prints is on the terminal of the command, and its log is among the events.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import MetaData, event

KEPT = 4
"""Files that are kept open: runs, the index of events, the events of this run, and of the one before."""

# With another version of Dagster, which may have other names, events take as long as they do.
_MAKE_ENGINES = (
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage",
)


@contextmanager
def kept_open() -> Iterator[None]:
    """Keep the SQLite files that this process used last open to the end of the block, outside of any other such one."""
    event.listen(MetaData, "before_create", _in_one_transaction)
    try:
        with _engines_kept(), _migrations_kept(), _nothing_copied():
            yield
    finally:
        event.remove(MetaData, "before_create", _in_one_transaction)


def _path_of(connection: Any) -> str:
    """Return the file of a connection, "" if it is none of SQLite to a file."""
    if not isinstance(connection, sqlite3.Connection):
        return ""
    return str(connection.execute("PRAGMA database_list").fetchone()[2] or "")


@contextmanager
def _engines_kept() -> Iterator[None]:
    """Let the storages of Dagster use the engines again that they made last."""
    modules: list[Any] = []
    for name in _MAKE_ENGINES:
        with suppress(ImportError):
            modules.append(import_module(name))
    theirs = {module: module.create_engine for module in modules if hasattr(module, "create_engine")}

    made: OrderedDict[str, Any] = OrderedDict()

    def again(make: Any) -> Any:
        def create_engine(address: str, **how: Any) -> Any:
            if address not in made:
                how.pop("poolclass", None)  # that keeps no connection; SQLAlchemy's own choice for files does
                made[address] = make(address, **how)
                made[address].dispose = lambda: None  # Dagster disposes of it after each statement
            made.move_to_end(address)
            while len(made) > KEPT:
                _dispose(made.popitem(last=False)[1])
            return made[address]

        return create_engine

    for module, make in theirs.items():
        module.create_engine = again(make)
    try:
        yield
    finally:
        for module, make in theirs.items():
            module.create_engine = make
        for engine in made.values():
            _dispose(engine)


def _dispose(engine: Any) -> None:
    """Close the connections of an engine; those in use close when they are given back."""
    del engine.dispose
    engine.dispose()


def _in_one_transaction(_: MetaData, connection: Any, **how: Any) -> None:
    """Begin a transaction before tables are made: Python begins none for them, and each would be flushed by itself."""
    raw = connection.connection.dbapi_connection
    if _path_of(raw) and not raw.in_transaction:
        raw.execute("BEGIN IMMEDIATE")


@contextmanager
def _migrations_kept() -> Iterator[None]:
    """Let Alembic read the scripts of a directory once."""
    theirs = ScriptDirectory.__dict__["from_config"]
    read: dict[str | None, ScriptDirectory] = {}

    def from_config(config: Config) -> ScriptDirectory:
        where = config.get_main_option("script_location")
        if where not in read:
            read[where] = theirs.__get__(None, ScriptDirectory)(config)
        return read[where]

    ScriptDirectory.from_config = from_config  # type: ignore[method-assign]
    try:
        yield
    finally:
        ScriptDirectory.from_config = theirs  # type: ignore[method-assign]


@contextmanager
def _nothing_copied() -> Iterator[None]:
    """Leave what steps print to the terminal, where Dagster would copy it to files of its home."""
    try:
        from dagster._core.storage.compute_log_manager import CapturedLogContext
        from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
    except ImportError:  # not public names: with another version it copies
        yield
        return
    manager: Any = LocalComputeLogManager
    theirs = manager.capture_logs

    @contextmanager
    def capture_logs(_: Any, log_key: Sequence[str]) -> Iterator[CapturedLogContext]:
        yield CapturedLogContext(log_key)

    manager.capture_logs = capture_logs
    try:
        yield
    finally:
        manager.capture_logs = theirs
