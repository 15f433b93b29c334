"""What an archive sends that fits no column: it costs its own cell or row, and is reported, not lost in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from nbia_pipeline.text import logger

log = logger(__name__)

VALUE_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Nonconformity:
    """One value, row or key that does not fit.

    Attributes:
        table: name of the table, or of the shape of an answer that fills none.
        key: key of the row, None where it has none or where it is about all rows.
        column: name of the column, or the key as the archive spells it where no column takes it.
        value: what the archive sent, as text; its first 500 characters.
        why: what is wrong with it and what became of it, in one sentence.
    """

    table: str
    key: str | None
    column: str
    value: str | None
    why: str

    @property
    def text(self) -> str:
        """All of it but the table, for people."""
        of = f" of {self.key}" if self.key else ""
        sent = "" if self.value is None else f" (sent: {self.value[:80]!r})"
        return f"{self.column}{of}{sent}: {self.why}"


_collected: ContextVar[list[Nonconformity] | None] = ContextVar("nonconformities", default=None)


@contextmanager
def collect() -> Iterator[list[Nonconformity]]:
    """Yield a list of what is reported inside the block, by the thread that entered it."""
    found: list[Nonconformity] = []
    before = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(before)


def report(found: Sequence[Nonconformity]) -> None:
    """Report what does not fit: to the log, in one line for all, and to the block that collects it, if there is one."""
    if not found:
        return
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    log.warning("the archive sent what does not fit: %s: %s%s", found[0].table, found[0].text, more)
    if (collected := _collected.get()) is not None:
        collected += found


def as_sent(raw: object) -> str:
    """Return a value as text, for a person; bytes that are not UTF-8 are shown as escapes."""
    try:
        is_json = raw is None or isinstance(raw, (bool, list, dict))
        text = json.dumps(raw, default=str, ensure_ascii=False) if is_json else str(raw)
    except RecursionError:
        text = "lists within lists"
    return text[:VALUE_CHARACTERS].encode("utf-8", "backslashreplace").decode()
