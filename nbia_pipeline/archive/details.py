"""What the archive tells about single series: metadata, size, instances, DICOM attributes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.archive.calls import Caller
from nbia_pipeline.archive.errors import ArchiveUnreachable, BadAnswer
from nbia_pipeline.archive.expect import without_gaps
from nbia_pipeline.schema.tables import SERIES_METADATA

log = logging.getLogger(__name__)

SHOWN = 5


@dataclass(frozen=True)
class SeriesSize:
    """How large a series is.

    Attributes:
        file_size: sum of the sizes of its DICOM files in bytes, uncompressed: not what a download transfers.
        image_count: number of its instances.
    """

    file_size: int
    image_count: int


class DetailCalls(Caller):
    """The calls that take the UID of a series."""

    def series_metadata(self, series_uids: Sequence[str]) -> pa.Table:
        """Return the metadata of the series: table ``series_metadata``.

        Asks in bulk where the archive can, else one by one in parallel. The bulk call drops a UID silently
        where a series is hidden or unknown (server): such a series has no row here. Asked one by one, the
        server also fails at a series without images or without the address of its licence: it has no row
        either, and the log names it.

        Args:
            series_uids: SeriesInstanceUIDs.

        Raises:
            ArchiveUnreachable: the archive fails at more than half of the series.
            BadAnswer: rows of series that were not asked for.
        """
        if isinstance(series_uids, str):
            raise TypeError(f"series_uids is {series_uids!r}: give a list")
        if not series_uids:
            return SERIES_METADATA.schema.empty_table()
        try:
            table = self._metadata_in_bulk(series_uids)
        except BadAnswer as e:
            if "series_metadata" not in self._dialect.endpoints or e.status not in (404, 405, 500):
                raise
            log.info("the archive has no bulk metadata, asking one by one: %s", e)
            table = self._metadata_one_by_one(series_uids)
        self._compare(series_uids, table)
        return table

    def series_size(self, series_uid: str) -> SeriesSize | None:
        """Return the size of a series, or None where the archive knows none: unknown, or without images.

        Slow at the server; table ``series`` has both numbers. Rights are not checked there (server).

        Args:
            series_uid: SeriesInstanceUID.

        Raises:
            BadAnswer: more than one row.
        """
        rows = self._list("series_size", series_uid=series_uid).to_pylist()
        if len(rows) > 1:
            raise BadAnswer(f"the archive sent {len(rows)} sizes of one series")
        # Server: v2 answers with a row of holes for a series that it does not know.
        if not rows or not rows[0]["ImageCount"] or rows[0]["FileSize"] is None:
            return None
        return SeriesSize(rows[0]["FileSize"], rows[0]["ImageCount"])

    def sop_instance_uids(self, series_uid: str) -> list[str]:
        """Return the SOPInstanceUIDs of a series; the server answers for hidden series too.

        Args:
            series_uid: SeriesInstanceUID.
        """
        return without_gaps(self._list("sop_instance_uids", series_uid=series_uid), "SOPInstanceUID")

    def dicom_tags(self, series_uid: str) -> pa.Table:
        r"""Return the header of one arbitrary image of a series, attribute by attribute.

        Columns: ``Tag`` like ``(0008,0060)``, with a ``>`` in front for each sequence that it is nested in;
        ``Name``; ``Value`` as text, several values joined by ``\``, or null. A sequence ends with a row whose
        name begins with ``End``. No pixel data. Without images there are no rows (server).

        Args:
            series_uid: SeriesInstanceUID.

        Raises:
            NotAvailable: unknown, hidden or forbidden; the archive does not tell which.
        """
        return self._list("dicom_tags", series_uid=series_uid)

    def _metadata_in_bulk(self, series_uids: Sequence[str]) -> pa.Table:
        size = self._dialect.endpoint("series_metadata_bulk").at_most
        runs = [series_uids[i : i + size] for i in range(0, len(series_uids), size)]
        return pa.concat_tables([self._list("series_metadata_bulk", series_uids=run, format="JSON") for run in runs])

    def _metadata_one_by_one(self, series_uids: Sequence[str]) -> pa.Table:
        failed: list[str] = []

        def ask(series_uid: str) -> pa.Table:
            try:
                return self._list("series_metadata", series_uid=series_uid)
            except ArchiveUnreachable as e:
                failed.append(series_uid)
                if e.status != 500 or 2 * len(failed) > len(series_uids):
                    raise
                log.warning("no metadata of series %s, the archive fails at it: %s", series_uid, e)
                return SERIES_METADATA.schema.empty_table()

        # As many as may be in flight: more would only wait for a place.
        with ThreadPoolExecutor(self._session.limiter.most, thread_name_prefix="nbia-metadata") as pool:
            return pa.concat_tables(pool.map(ask, series_uids)).combine_chunks()

    def _compare(self, series_uids: Sequence[str], table: pa.Table) -> None:
        """Compare the series that were asked for with those that were sent."""
        sent = table["SeriesInstanceUID"]
        if not pc.all(pc.is_in(sent, pa.array(series_uids, pa.string())), min_count=0).as_py():
            raise BadAnswer("the archive sent metadata of series that were not asked for")
        missing = set(series_uids).difference(sent.to_pylist())
        if missing:
            log.warning(
                "the archive has no metadata of %d of %d series, such as %s",
                *(len(missing), len(series_uids), ", ".join(sorted(missing)[:SHOWN])),
            )
