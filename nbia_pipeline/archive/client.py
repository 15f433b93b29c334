"""The client: one method per call, days as `date`, tables as Arrow, images as streams of bytes.

The calls stand by family in :mod:`~nbia_pipeline.archive.values`, :mod:`~nbia_pipeline.archive.listings`,
:mod:`~nbia_pipeline.archive.details` and :mod:`~nbia_pipeline.archive.files`.
"""

from __future__ import annotations

from types import TracebackType

from nbia_pipeline.archive.details import DetailCalls
from nbia_pipeline.archive.files import FileCalls
from nbia_pipeline.archive.listings import ListingCalls
from nbia_pipeline.archive.values import ValueCalls


class NbiaClient(ValueCalls, ListingCalls, DetailCalls, FileCalls):
    """A client of one NBIA archive, for any number of threads.

    Args:
        base_url: address that ends in ``/nbia-api``.
        api: ``v2`` (the guide's, with a token) or ``v4`` (no token needed).
        username: account at the archive; the guest by default.
        password: its password; the guest has none.
        ca_bundle: file of certificates to trust, or None for the system's.
        patience: time-outs, retries, and how many requests are in flight at a time.

    Every method raises :class:`~nbia_pipeline.archive.errors.ArchiveError` where the call fails, and never
    returns an empty table on the word of a refused token. What cannot be sent (an empty name, a day as text) is
    a ValueError or TypeError before anything is sent.

    Example:
        >>> with NbiaClient("https://services.cancerimagingarchive.net/nbia-api") as client:
        ...     frame = client.series(collection="LIDC-IDRI").to_pandas()
    """

    def __enter__(self) -> NbiaClient:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    @property
    def api(self) -> str:
        """The dialect that the archive is asked in, ``v2`` or ``v4``."""
        return self._dialect.name

    def close(self) -> None:
        """Log out, best effort, and close the connections."""
        self._session.close()
