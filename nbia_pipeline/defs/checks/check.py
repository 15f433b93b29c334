"""Build checks from functions that find what is wrong.

A check of a partitioned asset is evaluated once for each partition of its run, and each of these has a result of its
own in the UI: a pass for one collection hides no failure of another. Dagster's own result of a check knows only runs of
one partition, so that a run over a range would record one result for no partition: the evaluations are made here.
"""

import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as Target,
)

from nbia_pipeline import stopping
from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import records
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.schema import Table
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import markdown_code

SHOWN = 10
# Of the command in the description; all of it is in the metadata.
REMEDY_CHARACTERS = 120


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        what: what is wrong, in one sentence.
        series: SeriesInstanceUID, None if it is not about one series.
        fetchable: False for a series that another run is not likely to fetch.
        warning: True if it is a hint whatever the severity of the check.
    """

    what: str
    series: str | None = None
    fetchable: bool = True
    warning: bool = False


@dataclass(frozen=True)
class Subject:
    """What an evaluation of a check examines.

    Attributes:
        lake: the lake; a check writes nothing but the results of a verification.
        settings: of the archive.
        collection: the partition; "" for an asset of the entire archive.
        client: the archive, for checks with `needs_archive`.
        last: figures of the last materialization of the partition, by their names.
        instance: Dagster's; None where a check is called without a run.
        run_id: the run of the check.
        to_go: how many evaluations of the check are left in this run, with this one.
        shared: what the evaluations of the check in this run share: what they have spent so far.
    """

    lake: Lake
    settings: Settings
    collection: str = ""
    client: NbiaClient | None = None
    last: Mapping[str, Any] = field(default_factory=dict)
    instance: dg.DagsterInstance | None = None
    run_id: str = ""
    to_go: int = 1
    shared: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """What a check found.

    Attributes:
        findings: what is wrong; only the first ten are kept.
        properties: what was covered, as metadata.
        remedy: returns the command that fixes the first findings.
        summary: what was found in all, in one sentence.
    """

    findings: Iterable[Finding]
    properties: dict[str, Any] = field(default_factory=dict)
    remedy: Callable[[list[Finding]], str | None] = lambda first: None
    summary: str = ""


def _as_they_are(lake: Lake, partitions: list[str]) -> list[str]:
    return partitions


@dataclass(frozen=True)
class Check:
    """What is checked, and how.

    Attributes:
        name: of the check.
        description: what is true if it passes, in one sentence.
        find: finds what is wrong in a partition; it passes if there is nothing.
        severity: of a finding.
        needs_archive: True if it asks the archive too.
        order: returns the partitions of a run in the order in which they are checked, and others that are due.
    """

    name: str
    description: str
    find: Callable[[Subject], Report]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    needs_archive: bool = False
    order: Callable[[Lake, list[str]], list[str]] = _as_they_are


def build_check_step(
    naming: Naming, settings: Settings, table: Table, checks: Sequence[Check], asset: str = "", name: str = ""
) -> dg.AssetChecksDefinition:
    """Return checks of an asset that are one step: one reads files while another waits for the archive.

    Each can be run alone too. One that fails to run fails the step, after the results of the others.

    Args:
        table: what the asset is about; a run without partitions covers the collections that the lake has it of.
        checks: the checks.
        asset: name of the asset; that of the table by default.
        name: of the step; by default it is derived from the asset.
    """
    key = naming.key(asset or table.name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # partitions of checks; the tests fail if they change
        specs = {
            check.name: dg.AssetCheckSpec(
                check.name,
                asset=key,
                description=check.description,
                partitions_def=naming.partitions if table.partitioned else None,
            )
            for check in checks
        }

    @dg.multi_asset_check(
        name=name or naming.of(f"check_{asset or table.name}"),
        specs=list(specs.values()),
        required_resource_keys={naming.lake, *([naming.archive] if any(c.needs_archive for c in checks) else [])},
        can_subset=True,
    )
    def step(context: dg.AssetCheckExecutionContext) -> Iterator[Any]:
        selected = {each.name for each in context.selected_asset_check_keys}
        failures = []
        # One lane for those that ask the archive, and one for the others: each has a large table in memory.
        with as_failure(settings), ExitStack() as lanes:
            partitions = _partitions(naming, table, context)
            pools = [lanes.enter_context(stopping.threads(1, name)) for name in ("nbia-checks", "nbia-checks-archive")]
            results = {
                check.name: pools[check.needs_archive].submit(
                    _evaluations, naming, settings, specs[check.name], check, partitions, context
                )
                for check in checks
                if check.name in selected
            }
            wait(results.values())
        for check_name, result in results.items():
            if failure := result.exception():
                failures.append(failure)
            else:
                yield dg.Output(None, output_name=specs[check_name].get_python_identifier())
                yield from result.result()
        if failures:
            raise failures[0]

    return step


def build_check(
    naming: Naming,
    settings: Settings,
    table: Table,
    name: str,
    description: str,
    find: Callable[[Subject], Report],
    *,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetChecksDefinition:
    """Return a check of a table that is a step of its own; see :class:`Check`."""
    step = f"{naming.key(table.name).to_python_identifier()}_{name}"
    return build_check_step(naming, settings, table, [Check(name, description, find, severity)], name=step)


def _partitions(naming: Naming, table: Table, context: dg.AssetCheckExecutionContext) -> list[str]:
    step = context.op_execution_context
    if step.has_partition_key or step.has_partition_key_range:
        return list(step.partition_keys)
    return naming.lake_of(context).open(write=False).collections_of(table) if table.partitioned else [""]


def _evaluations(
    naming: Naming,
    settings: Settings,
    spec: dg.AssetCheckSpec,
    check: Check,
    partitions: list[str],
    context: dg.AssetCheckExecutionContext,
) -> list[dg.AssetCheckEvaluation]:
    """Evaluate a check for the partitions of a run, one after the other."""
    run, shared = context.op_execution_context, dict[str, Any]()
    with as_failure(settings), ExitStack() as stack:
        lake = naming.lake_of(context).open(write=False)
        client = stack.enter_context(naming.archive_of(context).client()) if check.needs_archive else None
        made = []
        chosen = check.order(lake, partitions)
        for done, partition in enumerate(chosen):
            target, last = _last_materialization(run.instance, spec.asset_key, partition)
            to_go = len(chosen) - done
            subject = Subject(lake, settings, partition, client, last, run.instance, run.run_id, to_go, shared)
            result = _result(check, subject)
            made.append(
                dg.AssetCheckEvaluation(
                    asset_key=spec.asset_key,
                    check_name=spec.name,
                    target_materialization_data=target,
                    blocking=spec.blocking,
                    partition=partition or None,
                    **result,
                )
            )
    # The UI shows the last result first, and that is to be one of the run's own partitions.
    return sorted(made, key=lambda evaluation: (evaluation.partition or "") in partitions)


def _last_materialization(
    instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str
) -> tuple[Target | None, dict[str, Any]]:
    """Return which materialization a result is about, by which Dagster knows whether it is still valid; its figures."""
    of = dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition] if partition else None)
    found = instance.fetch_materializations(of, limit=1).records
    event = found[0].asset_materialization if found else None
    if event is None:
        return None, {}
    target = Target(storage_id=found[0].storage_id, run_id=found[0].run_id, timestamp=found[0].timestamp)
    return target, {name: entry.value for name, entry in event.metadata.items()}


def _result(check: Check, subject: Subject) -> dict[str, Any]:
    """Return what an evaluation says: fields of :class:`dagster.AssetCheckEvaluation`."""
    try:
        report = check.find(subject)
        findings = iter(report.findings)
        first = list(islice(findings, SHOWN))
        count, failed = 0, False
        for finding in chain(first, findings):
            count, failed = count + 1, failed or not finding.warning
    except DamagedFile as e:
        report = Report([], remedy=lambda first: "nbia-pipeline verify --repair")
        first, count, failed = [Finding(str(e))], 1, True
    text, metadata = check.description, {"findings": count, **report.properties}
    if report.summary:
        text += f" {report.summary}."
    if first:
        rows = ({"series": f.series or "", "finding": f.what} for f in first)
        metadata["first_findings"] = records(rows)
        # The UI takes the description for Markdown, in which an image is fetched from wherever its author says.
        found = f"{'It failed with ' if failed else ''}{count} finding{'' if count == 1 else 's'}"
        text += f" {found}; the first: {markdown_code(first[0].what)}"
        if remedy := report.remedy(first):
            metadata["remedy"] = dg.MetadataValue.md(markdown_code(remedy))
            short = textwrap.shorten(remedy, REMEDY_CHARACTERS, placeholder=" ...")
            text += f". To fix it: {markdown_code(short)}"
    return {
        "passed": not first,
        "metadata": metadata,
        "description": text,
        "severity": check.severity if failed or not first else dg.AssetCheckSeverity.WARN,
    }
