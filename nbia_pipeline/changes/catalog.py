"""What the archive has as a whole: the collections that the settings keep, and lists of values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa

from nbia_pipeline import stopping
from nbia_pipeline.address import without_secrets
from nbia_pipeline.archive import BadAnswer, NbiaClient
from nbia_pipeline.changes.conformance import ENRICHED
from nbia_pipeline.changes.listing import Fetched, with_earlier
from nbia_pipeline.lake import DamagedFile, Lake, LakeError
from nbia_pipeline.lake.damage import read_or_empty
from nbia_pipeline.schema import Table
from nbia_pipeline.schema import tables as t
from nbia_pipeline.schema.status import ARCHIVE, KEPT
from nbia_pipeline.settings import Settings, SettingsError
from nbia_pipeline.text import did_you_mean, first_of, matching, shown, unmatched

DESCRIPTIONS_AT_A_TIME = 8
LONG_AGO = datetime(1, 1, 1)  # noqa: DTZ001 - as the times of descriptions

NO_EARLIER_VALUES = "Values that the archive does not send now cannot stay as they were"
PATIENT_COUNT = "PatientCount"

VALUES: Mapping[Table, Callable[[NbiaClient], pa.Table]] = {
    t.MODALITIES: NbiaClient.modality_values,
    t.BODY_PARTS: NbiaClient.body_part_values,
    t.MANUFACTURERS: NbiaClient.manufacturer_values,
}
"""The lists of values, and how each is asked for."""


def values_of(client: NbiaClient, lake: Lake, table: Table) -> Fetched:
    """Return a table of values; numbers of patients that the archive does not send stay as they were."""
    before = read_or_empty(lake, table, lost=NO_EARLIER_VALUES)
    return with_earlier(Fetched(VALUES[table](client)), before, ENRICHED[table.name])


def kept_collections(settings: Settings, listed: list[str], known: Sequence[str] = ()) -> list[str]:
    """Return the collections that the settings keep.

    Args:
        listed: what the archive lists.
        known: what the lake has tables of. One of these that is no longer listed was withdrawn, which is not an
            error of the settings.

    Raises:
        BadAnswer: the archive lists none at all.
        SettingsError: a name or glob of the collections, of the images or of the selections matches nothing.
    """
    if not listed:
        raise BadAnswer(f"the archive lists no collections for the account {settings.username!r}: try again later")
    named = {"collections": settings.collections, "images": settings.images or (), "select": tuple(settings.select)}
    for argument, patterns in named.items():
        for pattern, similar in unmatched(patterns, [*listed, *known]).items():
            hint = did_you_mean(similar, f"it lists {first_of(listed)}")
            raise SettingsError(
                f"{settings.name_of(argument)} has {pattern!r}, which matches no collection that {settings.username!r} "
                f"may see: {hint} (names are case-sensitive)"
            )
    return matching(settings.collections, listed)


def describe(client: NbiaClient, settings: Settings, before: pa.Table, known: Sequence[str] = ()) -> Fetched:
    """Return the ``collections`` table: one row per mirrored collection, with its count and its latest description.

    Where the archive does not answer for one of these, its earlier value stays, or it is null.

    Args:
        client: the archive.
        settings: which collections are mirrored.
        before: the table as it was.
        known: the collections that the lake has tables of.
    """
    collections = kept_collections(settings, client.collection_values(), known)
    earlier = {row["Collection"]: row for row in before.to_pylist()}
    counts = client.optional("collection_counts", client.collection_counts, "the number of patients by collection")

    def row(collection: str) -> dict[str, Any]:
        ask = partial(client.collection_description, collection)
        found = client.optional("collection_descriptions", ask, "the descriptions of collections")
        described = old = earlier.get(collection, {})
        if found is not None:
            own = (d for d in found.to_pylist() if d["Collection"] == collection)
            described = max(own, key=lambda d: d["DescriptionTimestamp"] or LONG_AGO, default={})
        count = old.get(PATIENT_COUNT) if counts is None else counts.get(collection)
        return {**described, "Collection": collection, PATIENT_COUNT: count}

    # The first one alone: an archive that lacks the call is asked once.
    rows = [row(collection) for collection in collections[:1]]
    with stopping.threads(DESCRIPTIONS_AT_A_TIME, "nbia-descriptions") as pool:
        rows += pool.map(row, collections[1:])
    table = pa.Table.from_pylist(rows, schema=t.COLLECTIONS.schema)
    fetched = Fetched(table, {KEPT: json.dumps(settings.collections)})
    return with_earlier(fetched, before, ENRICHED[t.COLLECTIONS.name])


def expect_own_lake(lake: Lake, prefix: str, archive: str) -> dict[str, str]:
    """Return the property of ``collections`` that names the archive of a lake; another one's lake is not touched.

    Two archives in one lake would withdraw each other's series. The same archive may move to another address, or be
    given another prefix, but not both at once.

    Args:
        lake: the lake.
        prefix: first part of the asset keys of the archive.
        archive: its name or address, as in the settings.

    Raises:
        LakeError: the lake is that of another archive.
    """
    try:
        owner = lake.read_properties(t.COLLECTIONS).get(ARCHIVE, "")
    except DamagedFile:  # it is written anew
        owner = ""
    own = {ARCHIVE: f"{prefix} {without_secrets(archive)}"}
    known_prefix, _, known_archive = owner.partition(" ")
    if owner and prefix != known_prefix and own[ARCHIVE] != f"{prefix} {known_archive}":
        raise LakeError(
            f"the lake {lake.uri} belongs to the archive {shown(known_archive)} (assets {shown(known_prefix)}/...): "
            "set another lake for this one",
            arguments=("lake",),
        )
    return own
