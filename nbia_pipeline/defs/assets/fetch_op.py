"""One batch of series: fetched in one step and reported, in full if it fails.

A batch is what a process or a machine takes at a time, and what re-execution from failure repeats.
"""

import hashlib
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg

from nbia_pipeline import stopping
from nbia_pipeline.defs.assets.partitioned import FAILED_COLLECTIONS
from nbia_pipeline.defs.failures import INTERRUPTS, as_failure, failure, interrupts_end_the_run
from nbia_pipeline.defs.metadata import records, size_classes
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.errors import OURS, error_text
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.lock import soon_if_interrupted
from nbia_pipeline.mirror.commit import already_there, commit_journal
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.journal import has_entries, has_failed, mark_failed
from nbia_pipeline.mirror.progress import Progress
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import WantedSeries, collections_of, named
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED, UNAVAILABLE
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import first_of, shown

RETRY = dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
COLLECTIONS_AT_A_TIME = 4
SHOWN = 100
"""Rows of a table in the UI: each event keeps its own."""
T = TypeVar("T")


def build_fetch_op(naming: Naming, settings: Settings, what: str) -> dg.OpDefinition:
    """Return the op that fetches a batch: a list of :class:`WantedSeries` as JSON, of any collections.

    The op is named after `what`. In a run with partitions these are those of the asset ``images``; else, as for a cart,
    a batch reports by collection.
    """

    @dg.op(
        name=naming.of(f"fetch_{what}"),
        pool=naming.pool,
        retry_policy=RETRY,
        out=dg.Out(dict, io_manager_key=naming.steps),
        required_resource_keys={naming.archive, naming.lake},
    )
    @interrupts_end_the_run()
    def fetch(context: dg.OpExecutionContext, batch: list[Any]) -> dict[str, Any]:
        key = str(context.get_mapping_key())
        wanted = [WantedSeries.from_json(w) for w in batch]
        started = time.perf_counter()
        with as_failure(settings):
            lake = naming.lake_of(context).open()
            # A retry, or another run, may have fetched some meanwhile.
            there = set().union(*each_collection(partial(already_there, lake), wanted))
        missing = [w for w in wanted if w.SeriesInstanceUID not in there]
        name = named(collections_of(wanted))
        progress = Progress(name, missing, lambda line: context.log.info(shown(f"{key}, {line}")))
        with _reported_in_full(context, settings, naming.key("images"), lake, missing, progress):
            if missing:
                with naming.archive_of(context).client() as client, progress.told():
                    Mirror(client, lake).fetch(missing, on_result=progress.add, on_bytes=progress.arrived)
            # Another batch failed: nothing follows that would carry the receipts of this one over.
            each_collection(partial(_commit_if_one_failed, lake), wanted)
        report = batch_report(progress.receipts, len(there), time.perf_counter() - started)
        context.log.info(shown(f"{key}, {progress.line()}; {summary_of(report)}"))
        partitions = _by_collection(wanted, progress.receipts, there)
        return {**report, "batch": key, "digest": digest_of(batch), "partitions": partitions}

    return fetch


def each_collection(work: Callable[[list[WantedSeries]], T], wanted: Sequence[WantedSeries]) -> list[T]:
    """Return what some work returns for the series of each collection: on an object store each takes several calls."""
    by_collection: dict[str, list[WantedSeries]] = {}
    for series in wanted:
        by_collection.setdefault(series.Collection, []).append(series)
    with stopping.threads(COLLECTIONS_AT_A_TIME, "nbia-batch") as pool:
        calls = (partial(work, series) for series in by_collection.values())
        return list(stopping.in_order(pool, calls, most=COLLECTIONS_AT_A_TIME))


def _commit_if_one_failed(lake: Lake, series: Sequence[WantedSeries]) -> None:
    collection = series[0].Collection
    if has_failed(lake, collection):
        commit_journal(lake, collection)


def _by_collection(
    wanted: Sequence[WantedSeries], receipts: Sequence[Receipt], there: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return what a batch did by collection: for each partition of the run, if it has partitions."""

    def count(series: Iterable[WantedSeries]) -> Counter[str]:
        return Counter(one.Collection for one in series)

    held = count(one for one in wanted if one.SeriesInstanceUID in there)
    done: dict[str, list[Receipt]] = {name: [] for name in count(wanted)}
    for receipt in receipts:
        done[receipt.wanted.Collection].append(receipt)
    return {name: counts(done[name], held[name]) for name in done}


def digest_of(batch: list[Any]) -> str:
    """Return what tells a batch, as plain JSON values, from one of another plan that has the same key."""
    return hashlib.sha256(json.dumps(batch, sort_keys=True).encode()).hexdigest()


@contextmanager
def _reported_in_full(
    context: dg.OpExecutionContext,
    settings: Settings,
    asset: dg.AssetKey,
    lake: Lake,
    missing: Sequence[WantedSeries],
    progress: Progress,
) -> Iterator[None]:
    """Where a batch fails or is interrupted: commit what it and others have fetched, and fail the step."""
    try:
        yield
    except INTERRUPTS:
        _commit_finished(context, lake, missing)
        raise
    except Exception as e:
        base = failure(e, settings)
        if base.allow_retries and context.retry_number < RETRY.max_retries:
            raise base from e
        _commit_finished(context, lake, missing)
        problem = error_text(e, settings.name_of) if isinstance(e, OURS) else shown(f"{type(e).__name__}: {e}")
        rows = failed_rows(missing, progress.receipts, problem)
        key = str(context.get_mapping_key())
        for partition, some in _rows_by_partition(context, missing, rows).items():
            seen: dict[str, Any] = {"batch": key, "failed": failed_table(some)}
            context.log_event(dg.AssetObservation(asset, partition=partition, metadata=seen))
        tried = {r.wanted.SeriesInstanceUID for r in progress.receipts}
        stopped = [w for w in missing if w.SeriesInstanceUID not in tried] or missing
        names = collections_of(stopped)
        of = f" ({first_of(names)})" if context.has_partition_key_range else ""
        raise dg.Failure(
            shown(f"{len(rows)} of the {len(missing)} series of batch {key}{of} were not fetched: {problem}"),
            metadata={
                **base.metadata,
                "failed": failed_table(rows),
                FAILED_COLLECTIONS: dg.MetadataValue.json(names),
            },
            allow_retries=False,
        ) from e


def _rows_by_partition(
    context: dg.OpExecutionContext, wanted: Sequence[WantedSeries], rows: Sequence[dict[str, str]]
) -> dict[str, list[dict[str, str]]]:
    """Return the rows of a batch that failed by the partition that they are about, if the run has partitions."""
    if not (context.has_partition_key or context.has_partition_key_range):
        return {}
    names = list(context.partition_keys)
    if len(names) == 1:
        return {names[0]: list(rows)}
    collections = {w.SeriesInstanceUID: w.Collection for w in wanted}
    found: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(collections[row["series"]], []).append(row)
    return found


def _commit_finished(context: dg.OpExecutionContext, lake: Lake, missing: Sequence[WantedSeries]) -> None:
    """Commit what this batch has fetched, and the others of the run: its last step is not run."""
    names = list(context.partition_keys) if context.has_partition_key_range else []
    for collection in sorted({*names, *collections_of(missing)}):
        try:
            with soon_if_interrupted():
                mark_failed(lake, collection)
                if has_entries(lake, collection):
                    commit_journal(lake, collection)
        except LakeError as e:  # the first error is the one to report; the next plan makes up for this
            where = f"what was fetched of {collection} is in the journal, but not in the tables yet"
            context.log.warning(shown(f"{where}: {e}"))


def failed_rows(wanted: Sequence[WantedSeries], receipts: Sequence[Receipt], problem: str) -> list[dict[str, str]]:
    """Return what was not fetched and why: what the archive refused, then what the problem stopped."""
    tried = {r.wanted.SeriesInstanceUID for r in receipts}
    refused = {r.wanted.SeriesInstanceUID: f"{r.status}: {r.reason}" for r in receipts if r.status != COMPLETE}
    stopped = {w.SeriesInstanceUID: f"not fetched: {problem}" for w in wanted if w.SeriesInstanceUID not in tried}
    return [{"series": uid, "what": what} for uid, what in {**refused, **stopped}.items()]


def failed_table(rows: Sequence[dict[str, str]]) -> dg.TableMetadataValue:
    """Return the first hundred rows as a table for the UI."""
    return records(rows[:SHOWN], {"series": "string", "what": "string"})


def batch_report(receipts: Sequence[Receipt], there: int, seconds: float) -> dict[str, Any]:
    """Return what a batch did, as plain JSON values; `there` of its series were in the lake already."""
    return {**counts(receipts, there), "seconds": round(seconds, 3), "peak_memory_bytes": peak_memory()}


def counts(receipts: Sequence[Receipt], there: int) -> dict[str, Any]:
    """Return how many series, files and bytes some receipts are of; `there` more were in the lake already."""
    fetched = [r for r in receipts if r.status == COMPLETE]
    sizes = [sum(i.Size for i in r.instances) for r in fetched]
    status = Counter(r.status for r in receipts)
    return {
        "fetched": len(fetched),
        "files": sum(len(r.instances) for r in fetched),
        "bytes": sum(sizes),
        "healed": sum(r.repaired for r in fetched),  # as in 0.1.0, whose runs may be re-executed from failure
        "quarantined": status[QUARANTINED],
        "unavailable": status[UNAVAILABLE],
        "already_there": there,
        "sizes": size_classes(sizes),
    }


def summary_of(report: dict[str, Any]) -> str:
    """Return what a batch had to do besides fetching, in words."""
    words = {
        "healed": "instances repaired",
        "quarantined": "series quarantined",
        "unavailable": "series unavailable",
        "already_there": "series already in the lake",
    }
    return ", ".join(f"{report[name]} {text}" for name, text in words.items() if report[name]) or "no problems"


def peak_memory() -> int:
    """Return the peak memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: what getrusage reports there began as the peak of the process that started this one
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
