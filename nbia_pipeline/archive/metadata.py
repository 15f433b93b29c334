"""The metadata of many series: in bulk where the archive can, else one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import copy_context

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import stopping
from nbia_pipeline.archive.calls import Calls
from nbia_pipeline.archive.conformance import Nonconformity, report
from nbia_pipeline.archive.endpoints import metadata_columns
from nbia_pipeline.archive.errors import ArchiveError, BadAnswer, LoginRefused, ServerError
from nbia_pipeline.archive.expect import one_row_each, rows_with
from nbia_pipeline.archive.optional import in_haste, may_succeed_singly, too_slow
from nbia_pipeline.schema.arrow import among, with_column
from nbia_pipeline.schema.tables import SERIES_METADATA
from nbia_pipeline.text import logger

log = logger(__name__)

SHOWN = 5
# After this many failures, if they are the majority, the call for one series is not made for the others.
GIVE_UP = 20
# After this many that take too long, it is not made for the others either.
FEW_SLOW = 3


class MetadataCalls(Calls):
    """The calls for the metadata of series."""

    def series_metadata(self, series_uids: Sequence[str], *, single: bool = False) -> pa.Table:
        """Return the metadata of the series: table ``series_metadata``.

        Asks in bulk where the archive can, else one by one in parallel. The bulk call drops a UID silently
        where a series is hidden or unknown (server): such a series has no row here. Asked one by one, the server also
        fails on a series without images or without the address of its license: it has no row either, and the log
        names it.

        Args:
            series_uids: SeriesInstanceUIDs.
            single: on v2, make one call more for each series, for the columns that the bulk call lacks:
                ``SOPClassUID``, ``StudyID``, ``AnnotationSize`` and ``TimeStamp``. Where it fails they are null, and
                the log says so. v4 has no such call.

        Raises:
            ServerError: the archive fails on more than half of the series.
            BadAnswer: most rows are of series that were not asked for.
        """
        try:
            table = self._in_runs("series_metadata_bulk", series_uids)
        except ArchiveError as e:
            if "series_metadata" not in self._dialect.endpoints or not may_succeed_singly(e):
                raise
            what = "the metadata of many series at once, so they are requested one by one"
            self.optional_calls.do_without("series_metadata_bulk", what, e)
            table = self._metadata_one_by_one(series_uids)
        else:
            table = self._with_single_calls(table) if single else table
        table = self._only(series_uids, table)
        return one_row_each(table, SERIES_METADATA, "SeriesInstanceUID")

    def _metadata_one_by_one(self, series_uids: Sequence[str]) -> pa.Table:
        failed: list[str] = []

        def ask(series_uid: str) -> pa.Table:
            try:
                return self._list("series_metadata", series_uid=series_uid)
            except ServerError as e:
                failed.append(series_uid)
                if 2 * len(failed) > len(series_uids):
                    raise
                log.warning("no metadata of series %s, the archive fails on it: %s", series_uid, e)
                return SERIES_METADATA.schema.empty_table()

        return self._in_threads(ask, series_uids)

    def _in_threads(self, ask: Callable[[str], pa.Table], series_uids: Sequence[str]) -> pa.Table:
        """Return the rows that `ask` returns for each series; it is called in the context of this thread."""
        context = copy_context()
        # More threads than requests may be in flight would only wait.
        with stopping.threads(self.max_in_flight, "nbia-metadata") as pool:
            tables = list(pool.map(lambda uid: context.copy().run(ask, uid), series_uids))
        return pa.concat_tables(tables).combine_chunks()

    def _with_single_calls(self, table: pa.Table) -> pa.Table:
        """Return metadata with what only the calls for one series serve; what the bulk call sent stays.

        The single call changes descriptions and manufacturers (server), so it fills nulls and nothing else.
        """
        lacking = metadata_columns(self._dialect.name, single=True) - metadata_columns(self._dialect.name, single=False)
        if not lacking or not table.num_rows:
            return table
        singles = self._single_calls(table["SeriesInstanceUID"].to_pylist(), sorted(lacking))
        at = pc.index_in(table["SeriesInstanceUID"], value_set=singles["SeriesInstanceUID"])
        for name in lacking:
            table = with_column(table, name, pc.coalesce(table[name], singles[name].take(at)))
        return table

    def _single_calls(self, series_uids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Return the answers of the calls for one series; those that fail are missing, and one line says so."""
        answered: list[str] = []
        failed: dict[str, ArchiveError] = {}

        def ask(series_uid: str) -> pa.Table:
            slow = sum(map(too_slow, list(failed.values())))
            if slow < FEW_SLOW and (len(failed) < GIVE_UP or len(failed) < len(answered)):
                try:
                    sent = self._list("series_metadata", series_uid=series_uid)
                    table = rows_with(sent, "SeriesInstanceUID", series_uid)
                    answered.append(series_uid)
                    return table
                except ArchiveError as e:
                    if not may_succeed_singly(e) or isinstance(e, LoginRefused):
                        raise
                    failed[series_uid] = e
            return SERIES_METADATA.schema.empty_table()

        with in_haste(tries=None):  # a busy archive must not cost the table
            singles = self._in_threads(ask, series_uids)
        if failed:
            uid, why = next(iter(failed.items()))
            log.warning(
                "no %s of %d of %d series: the archive fails on their single calls, such as that of %s: %s",
                *(", ".join(columns), len(series_uids) - len(answered), len(series_uids), uid, why),
            )
        return singles

    def _only(self, series_uids: Sequence[str], table: pa.Table) -> pa.Table:
        """Return the rows of the series that were asked for; the others, and those without a row, are reported."""
        asked = among(table["SeriesInstanceUID"], series_uids)
        others = table.filter(pc.invert(asked))["SeriesInstanceUID"].to_pylist()
        if others and 2 * len(others) > table.num_rows:
            raise BadAnswer("the archive sent metadata of series that were not asked for")
        why = "a row of a series that was not asked for was left out"
        report([Nonconformity(SERIES_METADATA.name, uid, "SeriesInstanceUID", uid, why) for uid in others])
        table = table.filter(asked)
        sent = table["SeriesInstanceUID"]
        missing = set(series_uids).difference(sent.to_pylist())
        if missing:
            log.warning(
                "the archive has no metadata of %d of %d series, such as %s",
                *(len(missing), len(series_uids), ", ".join(sorted(missing)[:SHOWN])),
            )
        return table
