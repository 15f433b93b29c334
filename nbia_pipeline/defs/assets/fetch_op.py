"""One batch of series: fetched in one step and reported, in full if it fails.

A batch is what a process or a machine takes at a time, and what re-execution from failure repeats.
"""

import hashlib
import json
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from nbia_pipeline.defs.failures import INTERRUPTS, as_failure, failure, interrupts_end_the_run
from nbia_pipeline.defs.metadata import records, size_classes
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.errors import OURS, error_text
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.lock import soon_if_interrupted
from nbia_pipeline.mirror.commit import already_there, commit_journal
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.journal import has_failed, mark_failed
from nbia_pipeline.mirror.progress import Progress
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import WantedSeries, collections_of
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED, UNAVAILABLE
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import shown

RETRY = dg.RetryPolicy(max_retries=2, delay=10, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)
SHOWN = 100
"""Rows of a table in the UI: each event keeps its own."""


def build_fetch_op(naming: Naming, settings: Settings, asset: str) -> dg.OpDefinition:
    """Return the op of an asset that fetches a batch: a list of :class:`WantedSeries` as JSON, of any collections."""

    @dg.op(
        name=naming.of(f"fetch_{asset}"),
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
            there = already_there(lake, wanted)
        missing = [w for w in wanted if w.SeriesInstanceUID not in there]
        progress = Progress(missing, lambda line: context.log.info(shown(f"{key}: {line}")))
        with _reported_in_full(context, settings, naming.key(asset), lake, missing, progress):
            if missing:
                with naming.archive_of(context).client() as client:
                    Mirror(client, lake).fetch(missing, on_result=progress.add)
            # Another batch failed: nothing follows that would carry the receipts of this one over.
            for collection in collections_of(wanted):
                if has_failed(lake, collection):
                    commit_journal(lake, collection)
        report = batch_report(progress.receipts, len(there), time.perf_counter() - started)
        context.log.info(shown(f"{key}: {progress.line()}; {summary_of(report)}"))
        return {**report, "batch": key, "digest": digest_of(batch)}

    return fetch


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
        table = failed_table(rows)
        key = context.get_mapping_key()
        context.log_event(
            dg.AssetObservation(asset, partition=context.partition_key, metadata={"batch": str(key), "failed": table})
        )
        raise dg.Failure(
            shown(f"{len(rows)} of the {len(missing)} series of batch {key} were not fetched: {problem}"),
            metadata={**base.metadata, "failed": table},
            allow_retries=False,
        ) from e


def _commit_finished(context: dg.OpExecutionContext, lake: Lake, missing: Sequence[WantedSeries]) -> None:
    for collection in collections_of(missing):
        try:
            with soon_if_interrupted():
                mark_failed(lake, collection)
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
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak_memory(),
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
