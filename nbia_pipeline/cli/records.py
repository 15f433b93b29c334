"""Dagster's records in SQLite, without what an event costs besides being flushed.

For every statement Dagster makes an engine, which forgets the statements that it has compiled, and opens a connection.
The last connection to a file that closes copies the write-ahead log into it, flushes both, and removes the log. For the
file of each run, Dagster also reads its ninety scripts of migrations, twice. Here an engine is made once for each file,
the scripts are read once, and a connection stays open: then SQLite copies the log once in a thousand pages. Each commit
is flushed as before.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any

from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.pool import Pool

KEPT = 4
"""Files that are kept open: runs, the index of events, the events of this run, and of the one before."""

# With another version of Dagster, which may have other names, events take as long as they do.
_MAKE_ENGINES = (
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "dagster._core.storage.runs.sqlite.sqlite_run_storage",
)

_active = False


@contextmanager
def kept_open() -> Iterator[None]:
    """Keep the SQLite files that this process used last open to the end of the block; one within it changes nothing."""
    global _active
    if _active:
        yield
        return
    kept: OrderedDict[str, sqlite3.Connection] = OrderedDict()

    def keep(connection: Any, _: object) -> None:
        path = _path_of(connection)
        if not path:
            return
        if path not in kept:
            kept[path] = sqlite3.connect(path, check_same_thread=False)
        kept.move_to_end(path)
        with suppress(sqlite3.Error):  # it takes part in the log from its first statement on
            kept[path].execute("SELECT 1 FROM sqlite_master").fetchone()
        while len(kept) > KEPT:
            kept.popitem(last=False)[1].close()

    event.listen(Pool, "connect", keep)
    _active = True
    try:
        with _engines_kept(), _migrations_kept():
            yield
    finally:
        _active = False
        event.remove(Pool, "connect", keep)
        for connection in kept.values():
            connection.close()


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

    def again(make: Any) -> Any:
        made: OrderedDict[str, Any] = OrderedDict()

        def create_engine(address: str, **how: Any) -> Any:
            if address not in made:
                made[address] = make(address, **how)
            made.move_to_end(address)
            if len(made) > KEPT:
                made.popitem(last=False)
            return made[address]

        return create_engine

    for module, make in theirs.items():
        module.create_engine = again(make)
    try:
        yield
    finally:
        for module, make in theirs.items():
            module.create_engine = make


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
