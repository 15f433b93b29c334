"""The feed of changes and the state of a collection, where one of them is damaged or missing.

The state (``series_seen``) follows from the file that it replaced last, if that can be read, and the rows of the feed
since; else from the feed and the present listing. The feed (``series_changes``) follows from nothing else: the file
that it replaced last is put back, or it begins again. No change is recorded twice for that, and no withdrawal is
confirmed early: a series that is missing, and not withdrawn yet, counts as missing from the next listing on.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.changes.diff import replay
from nbia_pipeline.changes.present import moment, read_listing
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.damage import damage_of, missing, put_back
from nbia_pipeline.lake.layout import earlier_path, table_path
from nbia_pipeline.schema import Table
from nbia_pipeline.schema.arrow import with_column
from nbia_pipeline.schema.status import ABSENT_AT, API, CHANGES, LISTED_AT
from nbia_pipeline.schema.tables import SERIES, SERIES_CHANGES, SERIES_METADATA, SERIES_SEEN, TIME
from nbia_pipeline.text import logger

log = logger(__name__)


def rebuild_feed(lake: Lake, collection: str) -> list[str]:
    """Rebuild the feed and the state of a collection, as far as they are damaged or missing; the caller holds the lock.

    Returns:
        What was damaged and what is lost, in a sentence each, which are logged as warnings, too.

    Raises:
        DamagedFile: the state is damaged and so is the ``series`` table, from which it would follow.
        LakeError: the lake cannot be read or written.
    """
    found: list[str] = []

    def found_that(sentence: str) -> None:
        log.warning("%s: %s", collection, sentence)
        found.append(sentence)

    if why := why_feed_is_lost(lake, collection):
        found_that(_put_feed_back(lake, collection, why))
    if why := why_state_is_lost(lake, collection):
        found_that(_rebuild_state(lake, collection, why))
    if why := _fit_positions(lake, collection):
        found_that(why)
    return found


def why_feed_is_lost(lake: Lake, collection: str) -> str | None:
    """Return what is wrong with the feed of a collection, None if nothing is."""
    if damage := damage_of(lake, SERIES_CHANGES, collection):
        return str(damage)
    if lake.has_table(SERIES_CHANGES, collection):
        return None
    known = 0 if damage_of(lake, SERIES_SEEN, collection) else _position(lake, collection)
    return missing(SERIES_CHANGES, collection) if known or _has_earlier(lake, SERIES_CHANGES, collection) else None


def why_state_is_lost(lake: Lake, collection: str) -> str | None:
    """Return what is wrong with the state of a collection, None if nothing is; see :func:`why_feed_is_lost`.

    A state that is missing beside the feed of a first listing is that of a run that stopped in between.
    """
    if damage := damage_of(lake, SERIES_SEEN, collection):
        return str(damage)
    if lake.has_table(SERIES_SEEN, collection):
        return None
    lost = _has_earlier(lake, SERIES_SEEN, collection)
    if not lost and not damage_of(lake, SERIES_CHANGES, collection):
        listings = lake.read_table(SERIES_CHANGES, collection, columns=["ListedAt"])["ListedAt"]
        lost = pc.count_distinct(listings).as_py() > 1
    return missing(SERIES_SEEN, collection) if lost else None


def _put_feed_back(lake: Lake, collection: str, why: str) -> str:
    """Put the earlier file of the feed in its place, or remove the damaged one."""
    path = table_path(SERIES_CHANGES.name, collection)
    damaged = lake.read_bytes(path) or b""
    kept = ""
    if damaged.strip(b"\0"):  # perhaps a person can read more of it
        aside = f"{earlier_path(path)}.damaged"
        lake.put_bytes(aside, damaged)
        kept = f". The damaged file was moved to {lake.url(aside)}"
    if put_back(lake, SERIES_CHANGES, collection):
        last = pc.max(lake.read_table(SERIES_CHANGES, collection, columns=["ListedAt"])["ListedAt"]).as_py()
        return f"{why}. The file that it had replaced was put back; what was recorded after {last} (UTC) is lost{kept}"
    lake.remove(path)
    return f"{why}. There is no earlier file of it: the feed of changes begins again{kept}"


def _rebuild_state(lake: Lake, collection: str, why: str) -> str:
    series, listing = read_listing(lake, SERIES, collection)  # first: without it nothing is changed
    put = put_back(lake, SERIES_SEEN, collection)
    if not put:
        lake.remove(table_path(SERIES_SEEN.name, collection))
    rows, properties = read_listing(lake, SERIES_SEEN, collection)
    feed = lake.read_table(SERIES_CHANGES, collection)
    if rows.num_rows or feed.num_rows:
        rows = replay(rows, feed.slice(min(int(properties.get(CHANGES, 0)), feed.num_rows)), series)
        since = pc.if_else(rows["Withdrawn"], rows["MissingSince"], pa.scalar(None, TIME))
        rows = with_column(rows, "MissingSince", since)
        properties = {name: value for name, value in properties.items() if name != ABSENT_AT}
        # The feed has changes of this listing, or of a later one: it was taken into account.
        last = pc.max(feed["ListedAt"]).as_py()
        if LISTED_AT in listing and last is not None and moment(listing[LISTED_AT]) <= last:
            properties.update({name: listing[name] for name in (LISTED_AT, API) if name in listing})
        properties[CHANGES] = str(feed.num_rows)
        lake.write_table(SERIES_SEEN, rows, collection, properties=properties)
    made_of = "the file that it had replaced and the feed" if put else "the feed and the last listing"
    return (
        f"{why}. It was rebuilt from {made_of}: what is missing now, and not withdrawn yet, counts as missing from "
        "the next listing on"
    )


def _fit_positions(lake: Lake, collection: str) -> str | None:
    """Let the state account for no more rows than the feed has; return how many are lost."""
    known, rows = _position(lake, collection), lake.count_rows(SERIES_CHANGES, collection)
    if known <= rows:
        return None
    state, properties = read_listing(lake, SERIES_SEEN, collection)
    _ask_for_all_metadata(lake, collection)
    lake.write_table(SERIES_SEEN, state, collection, properties={**properties, CHANGES: str(rows)})
    lost = f"the feed of changes has {rows} rows, and had {known}: {known - rows} are lost"
    return f"{lost}. The state of the series is not lost"


def _ask_for_all_metadata(lake: Lake, collection: str) -> None:
    """Let the next run ask for the metadata of all series: the rows that are lost may have named some to ask for."""
    if damage_of(lake, SERIES_METADATA, collection):
        return  # they are asked for anyway
    properties = lake.read_properties(SERIES_METADATA, collection)
    if properties.pop(CHANGES, None) is not None:
        lake.write_table(
            SERIES_METADATA, lake.read_table(SERIES_METADATA, collection), collection, properties=properties
        )


def _position(lake: Lake, collection: str) -> int:
    return int(lake.read_properties(SERIES_SEEN, collection).get(CHANGES, 0))


def _has_earlier(lake: Lake, table: Table, collection: str) -> bool:
    return bool(lake.read_bytes(earlier_path(table_path(table.name, collection))))
