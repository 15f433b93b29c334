"""Dagster's records in SQLite, without what each event costs besides being flushed.

Dagster opens a connection for every statement and closes it again. The last connection that closes copies the
write-ahead log into the file, flushes both and removes the log: more than the event itself takes. As long as another
connection is open, SQLite does that once in a thousand pages, and each commit is flushed as before.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

KEPT = 4
"""Files that are kept open: runs, the index of events, the events of this run, and of the one before."""


@contextmanager
def kept_open() -> Iterator[None]:
    """Keep the SQLite files that this process uses last open, each by a connection that does nothing."""
    kept: OrderedDict[str, sqlite3.Connection] = OrderedDict()

    def keep(connection: Any, _: object) -> None:
        if not isinstance(connection, sqlite3.Connection):
            return
        path = connection.execute("PRAGMA database_list").fetchone()[2]
        if not path:
            return  # in memory
        if path not in kept:
            kept[path] = sqlite3.connect(path, check_same_thread=False)
        kept.move_to_end(path)
        with suppress(sqlite3.Error):  # it takes part in the write-ahead log from its first statement on
            kept[path].execute("SELECT 1 FROM sqlite_master").fetchone()
        while len(kept) > KEPT:
            kept.popitem(last=False)[1].close()

    event.listen(Pool, "connect", keep)
    try:
        yield
    finally:
        event.remove(Pool, "connect", keep)
        for connection in kept.values():
            connection.close()
