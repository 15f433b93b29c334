"""Releases that getUpdatedSeries of v4 does not show: those of series that the account may see, and the guest not.

Server: that call has the guest's rights, whatever the token. So the collections of which the account sees more patients
than the guest are listed instead, and what was released there is digested like the answer of the call itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date

from nbia_pipeline.archive import BadAnswer, NbiaClient, NotAvailable, ServerError
from nbia_pipeline.changes.cursor import Bucket, buckets_of
from nbia_pipeline.text import first_of, logger, matching

log = logger(__name__)

# A tick lists the smallest collections, up to these bounds: at some 50 series per patient, up to 25,000 rows.
MOST_COLLECTIONS = 20
MOST_PATIENTS = 500

SHOWN = 5


class RestrictedReleases:
    """What a tick sees of the restricted collections. It is used from one thread while another reads it.

    Attributes:
        digests: digest of each bucket, of the collections that were listed.
        unseen: the collections that were not listed; None as long as not even their names are known.
    """

    def __init__(self) -> None:
        self.digests: Mapping[Bucket, str] = {}
        self.unseen: Sequence[str] | None = None

    def look(self, member: NbiaClient, guest: NbiaClient, patterns: Sequence[str], since: date) -> None:
        """List the restricted collections, the smallest first, within the bounds.

        Args:
            member: a client with the account.
            guest: a client of the guest.
            patterns: names or globs of the collections that are kept.
            since: digest what was released after this day.

        Raises:
            ArchiveError: the archive cannot be asked which collections there are, or not be reached.
        """
        patients = _restricted(member, guest)
        self.unseen = sorted(matching(patterns, patients))
        for collection in _within_bounds({c: patients[c] for c in self.unseen}):
            try:
                rows = member.series(collection)
            except (BadAnswer, NotAvailable, ServerError) as e:
                log.warning("the sensor cannot see the releases of %s: %s", collection, e)
                continue
            # New objects, because the tick may read them at any time.
            self.digests = {**self.digests, **buckets_of(rows, since)}
            self.unseen = [c for c in self.unseen if c != collection]

    def carried(self, before: Mapping[Bucket, str]) -> dict[Bucket, str]:
        """Return these digests, and the earlier ones of the collections that were not listed: they are not news."""
        unseen = set(self.unseen or ())
        return {**{bucket: digest for bucket, digest in before.items() if bucket[0] in unseen}, **self.digests}

    def note(self) -> str:
        """Return for people what was not seen, or an empty text."""
        if self.unseen is None:
            what = "the collections that only this account may see could not be listed"
        elif self.unseen:
            names = first_of(self.unseen, SHOWN)
            what = (
                f"the sensor cannot see the releases of {names}, because getUpdatedSeries shows what the guest may see"
            )
        else:
            return ""
        return f"{what}; the reconcile schedule finds their changes"


def _restricted(member: NbiaClient, guest: NbiaClient) -> dict[str, int]:
    """Return the number of patients of the collections of which the account sees more than the guest.

    Where the archive does not count patients, these are the collections that the guest does not see at all.
    """
    try:
        mine, public = member.collection_counts(), guest.collection_counts()
    except (BadAnswer, NotAvailable, ServerError) as e:
        log.info("the archive does not count patients, so collections are compared by name: %s", e)
        return dict.fromkeys(sorted(set(member.collection_values()) - set(guest.collection_values())), 0)
    return {c: count or 0 for c, count in mine.items() if c and count != public.get(c)}


def _within_bounds(patients: Mapping[str, int]) -> Iterator[str]:
    """Yield the smallest collections that are within the bounds together."""
    total = 0
    for collection in sorted(patients, key=lambda c: (patients[c], c))[:MOST_COLLECTIONS]:
        total += patients[collection]
        if total > MOST_PATIENTS:
            return
        yield collection
