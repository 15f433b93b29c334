"""Fetch damaged or outdated series of the lake again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow.compute as pc

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.changes.present import present_series
from nbia_pipeline.headers.shards import remove_series
from nbia_pipeline.lake import Lake
from nbia_pipeline.lake.lock import soon_if_interrupted
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.journal import DAMAGED, revoke
from nbia_pipeline.mirror.plan import batches
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import wanted_series
from nbia_pipeline.schema.status import COMPLETE, PENDING
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.verify.inventory import VerifyResult

COMMAND = "nbia-pipeline verify --damaged --repair"
COMMAND_OUTDATED = "nbia-pipeline verify --ask-archive --repair"
NOT_LISTED = "the archive no longer lists it, so it cannot be fetched again; what is left of it stays"


@dataclass
class RefetchResult:
    """The outcome of fetching damaged series again.

    Attributes:
        uids: series that were fetched again, by collection.
        failures: why a series could not be, by SeriesInstanceUID.
    """

    uids: dict[str, list[str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def unrepaired(lake: Lake, collection: str) -> int:
    """Return how many series were found damaged and could not be fetched again yet: a repair was interrupted."""
    receipts = lake.read_table(IMAGE_SERIES, collection, columns=["Status", "Reason"])
    found = pc.and_(pc.equal(receipts["Status"], PENDING), pc.starts_with(receipts["Reason"], DAMAGED))
    return int(receipts.filter(found).num_rows)


def refetch(
    client: NbiaClient,
    lake: Lake,
    damaged: Sequence[VerifyResult],
    *,
    on_result: Callable[[Receipt], None] = lambda receipt: None,
) -> RefetchResult:
    """Fetch damaged or outdated series again, and publish what is complete and verified in their place.

    The receipts of damaged ones turn from ``complete`` to ``pending`` first, so that from now on nobody relies on
    what is damaged, even if the machine stops or the archive is down: then the next run fetches them. The damaged files
    stay until complete ones replace them.

    Args:
        client: the archive.
        lake: the lake.
        damaged: results with a finding.
        on_result: called with every outcome, from any thread.

    Raises:
        ArchiveError: the archive cannot be reached or refuses the account; what was fetched stays.
        LakeError: the lake cannot be written.
    """
    result, mirror = RefetchResult(), Mirror(client, lake)
    for collection in sorted({v.series.collection for v in damaged}):
        findings = {v.series.uid: v.finding or "" for v in damaged if v.series.collection == collection}
        wanted = [w for w in wanted_series(present_series(lake, collection)) if w.SeriesInstanceUID in findings]
        listed = {w.SeriesInstanceUID for w in wanted}
        result.failures.update({uid: NOT_LISTED for uid in findings if uid not in listed})
        # An outdated series is not damaged: it stays complete until the archive's present one replaces it.
        outdated = {v.series.uid for v in damaged if v.outdated}
        damage = {uid: f"{DAMAGED}: {findings[uid]}" for uid in listed - outdated}
        revoke(lake, collection, damage)
        if damage:  # the files that replace them have the same SeriesMD5, and their headers are to be read again
            remove_series(lake, collection, damage)
        for batch in batches(wanted):
            try:
                receipts = mirror.fetch(batch, ask_list=True, on_result=on_result)
            finally:
                with soon_if_interrupted():
                    mirror.commit(collection, clear_mark=False)
            for receipt in receipts:
                uid = receipt.wanted.SeriesInstanceUID
                if receipt.status == COMPLETE:
                    result.uids.setdefault(collection, []).append(uid)
                else:
                    result.failures[uid] = f"{receipt.status}: {receipt.reason}"
    return result
