"""The calls that only add to a proof: a server may lack each of them, refuse it, or be too slow for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from nbia_pipeline.archive.client import NbiaClient, SeriesSize
from nbia_pipeline.archive.errors import ArchiveError, ArchiveUnreachable, BadAnswer, LoginRefused

log = logging.getLogger(__name__)

T = TypeVar("T")


class Proofs:
    """Asks for digests and sizes, and returns None where the archive does not answer.

    A call that the archive lacks, or is too slow for, is not made again. The first failure of each call is a warning.

    Args:
        client: the archive.
    """

    def __init__(self, client: NbiaClient) -> None:
        self._client = client
        self._given_up: set[str] = set()
        self._warned: set[str] = set()

    def md5_of_image(self, sop_instance_uid: str) -> str | None:
        """Return the MD5 of one file; see :meth:`NbiaClient.md5_of_image`.

        Raises:
            ArchiveUnreachable: there is no connection.
        """
        return self._ask("the MD5 of an image", lambda: self._client.md5_of_image(sop_instance_uid))

    def md5_of_series(self, series_uid: str) -> str | None:
        """Return the digest of a series; see :meth:`NbiaClient.md5_hierarchy`.

        Raises:
            ArchiveUnreachable: there is no connection.
        """
        return self._ask("the MD5 of a series", lambda: self._client.md5_hierarchy(series_uid=series_uid))

    def size_of_series(self, series_uid: str) -> SeriesSize | None:
        """Return the size of a series; see :meth:`NbiaClient.series_size`.

        Raises:
            ArchiveUnreachable: there is no connection.
        """
        return self._ask("the size of a series", lambda: self._client.series_size(series_uid))

    def _ask(self, what: str, ask: Callable[[], T | None]) -> T | None:
        if what in self._given_up:
            return None
        try:
            return ask()
        except ArchiveError as e:
            if isinstance(e, ArchiveUnreachable) and e.status is None and not e.overloaded:
                raise
            # A page of a proxy has status 200, and a 500 may be about this one series.
            missing = isinstance(e, BadAnswer) and e.status not in (None, 200)
            if missing or isinstance(e, (ArchiveUnreachable, LoginRefused)):
                self._given_up.add(what)
            level = logging.INFO if what in self._warned else logging.WARNING
            self._warned.add(what)
            log.log(level, "the archive does not answer for %s, which other proofs replace: %s", what, e)
            return None
