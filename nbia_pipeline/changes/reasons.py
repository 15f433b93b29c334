"""Why the archive no longer lists a series, or refuses it: hidden, deleted or not permitted, as far as it says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.changes.diff import UID
from nbia_pipeline.text import logger

log = logger(__name__)

# Texts of getSeriesQCInfo for a series whose files the archive serves.
_SHOWN = ("Visible", "Downloadable")

GONE = "deleted or not permitted"
NOT_SERVED = "hidden, deleted or not permitted"
UNKNOWN = "unknown: the archive does not say"

T = TypeVar("T")

AskReasons = Callable[[Sequence[str]], Mapping[str, str]]
"""Returns why series are not listed, by SeriesInstanceUID; one of which nothing is known is missing."""


class Reasons:
    """Asks an archive why it does not list series, or does not serve them.

    getSeriesQCInfo shows series of any visibility among those that the account may see: one that it has is hidden, one
    that it lacks is deleted or not permitted. getDeniedSeries says which of the others the archive does not serve. Both
    are optional: a call that fails is not made again by this object, and the log says so once.

    Args:
        client: the archive.
    """

    def __init__(self, client: NbiaClient) -> None:
        self.client = client
        self._failed: set[str] = set()

    def of(self, series_uids: Sequence[str]) -> dict[str, str]:
        """Return the reason of each series, for people; one of which nothing is known is missing."""
        states = self._ask("getSeriesQCInfo", lambda: self.client.series_states(series_uids))
        rows = {} if states is None else {row[UID]: row for row in states.to_pylist()}
        reasons = {uid: _of_state(row["Visibility"], row["Collection"]) for uid, row in rows.items()}
        others = [uid for uid in series_uids if uid not in rows]
        denied = self._ask("getDeniedSeries", lambda: self.client.denied_series(others)) if others else None
        if states is None and denied is None:
            return {}
        for uid in others:
            if denied is not None and uid not in denied:
                reasons[uid] = UNKNOWN  # nothing denied is also the answer to an account without any rights (server)
            else:
                reasons[uid] = NOT_SERVED if states is None else GONE
        return reasons

    def _ask(self, endpoint: str, ask: Callable[[], T]) -> T | None:
        if endpoint in self._failed:
            return None
        try:
            return ask()
        except ArchiveError as e:
            self._failed.add(endpoint)
            log.warning("%s does not say why series are not available: %s", endpoint, e)
            return None


def _of_state(visibility: str | None, collection: str | None) -> str:
    """Return the reason of a series that getSeriesQCInfo shows."""
    if visibility in _SHOWN:
        return f"visible (Visibility: {visibility}) in collection {collection!r}"
    return f"hidden (Visibility: {visibility or 'not set'})"
