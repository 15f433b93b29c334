"""The calls that only add to a proof: a server may lack each of them, refuse it, or be too slow for it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from copy import copy
from typing import TypeVar

from nbia_pipeline.archive.client import NbiaClient, SeriesSize
from nbia_pipeline.archive.errors import ArchiveError, ArchiveUnreachable, BadAnswer, LoginRefused, NotAvailable

log = logging.getLogger(__name__)

T = TypeVar("T")

# A call that fails so often in a row, each time after its own retries, is not expected to be answered any more.
FAILURES = 3


class NoAnswer(Exception):
    """A call failed in a way that may pass; the text says why."""


class Proofs:
    """Asks for digests and sizes, and returns None where the archive has none or does not answer such calls.

    A call that the archive lacks or refuses, that is too slow for it, or that failed some times in a row, is not made
    again, and a warning says so. Each method raises:

        NoAnswer: the call failed in a way that may pass.
        ArchiveUnreachable: there is no connection.

    Args:
        client: the archive.
    """

    def __init__(self, client: NbiaClient) -> None:
        self._client = client
        self._failures: Counter[str] = Counter()
        self._final = False

    def final(self) -> Proofs:
        """Return the same for who tries for the last time: what may pass is None as well."""
        final = copy(self)
        final._final = True
        return final

    def md5_of_image(self, sop_instance_uid: str) -> str | None:
        """Return the MD5 of one file; see :meth:`NbiaClient.md5_of_image`."""
        return self._ask("the MD5 of an image", lambda: self._client.md5_of_image(sop_instance_uid))

    def md5_of_series(self, series_uid: str) -> str | None:
        """Return the digest of a series; see :meth:`NbiaClient.md5_hierarchy`."""
        return self._ask("the MD5 of a series", lambda: self._client.md5_hierarchy(series_uid=series_uid))

    def size_of_series(self, series_uid: str) -> SeriesSize | None:
        """Return the size of a series; see :meth:`NbiaClient.series_size`."""
        return self._ask("the size of a series", lambda: self._client.series_size(series_uid))

    def _ask(self, what: str, ask: Callable[[], T | None]) -> T | None:
        if self._failures[what] >= FAILURES:
            return None
        try:
            found = ask()
        except ArchiveError as e:
            if isinstance(e, ArchiveUnreachable) and e.status is None and not e.overloaded:
                raise
            if isinstance(e, NotAvailable):
                return None
            self._failures[what] += FAILURES if _lasting(e) else 1
            if self._failures[what] < FAILURES and not self._final:
                raise NoAnswer(f"the archive does not answer for {what}: {e}") from e
            log.warning("the archive does not answer for %s, so that proofs do without it: %s", what, e)
            return None
        self._failures[what] = 0
        return found


def _lasting(e: ArchiveError) -> bool:
    """Return whether a call would fail again: the archive lacks it, refuses it, or takes too long."""
    # A page of a proxy has status 200, or none is known; a 500 may be about one series.
    missing = isinstance(e, BadAnswer) and e.status not in (None, 200)
    too_slow = isinstance(e, ArchiveUnreachable) and e.status in (None, 504)
    return missing or too_slow or isinstance(e, LoginRefused)
