"""Build checks from functions that find what is wrong."""

import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import dagster as dg

from nbia_pipeline import stopping
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.metadata import records
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.resources import NbiaResource
from nbia_pipeline.lake import DamagedFile, Lake
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import markdown_code

SHOWN = 10
COLLECTIONS_SHOWN = 100
# Of the command in the description; all of it is in the metadata.
REMEDY_CHARACTERS = 120


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        collection: where.
        what: what is wrong, in one sentence.
        series: SeriesInstanceUID, None if it is not about one series.
        fetchable: False for a series that another run is not likely to fetch.
    """

    collection: str
    what: str
    series: str | None = None
    fetchable: bool = True


@dataclass(frozen=True)
class Subject:
    """What a check examines.

    Attributes:
        lake: the lake; a check writes nothing but the results of a verification.
        settings: of the archive.
        archive: the archive resource, for checks with `needs_archive`.
        collections: those of the run; none where it is not about some.
    """

    lake: Lake
    settings: Settings
    archive: NbiaResource | None = None
    collections: Sequence[str] = ()


@dataclass
class Report:
    """What a check found.

    Attributes:
        findings: what is wrong; only the first ten are kept.
        properties: what was covered, as metadata.
        remedy: returns the command that fixes the first findings.
    """

    findings: Iterable[Finding]
    properties: dict[str, Any] = field(default_factory=dict)
    remedy: Callable[[list[Finding]], str | None] = lambda first: None


@dataclass(frozen=True)
class Check:
    """What is checked, and how.

    Attributes:
        name: of the check.
        description: what is true if it passes, in one sentence.
        find: finds what is wrong; it passes if there is nothing.
        severity: of a finding.
        needs_archive: True if it asks the archive too.
    """

    name: str
    description: str
    find: Callable[[Subject], Report]
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR
    needs_archive: bool = False


def build_check(
    naming: Naming,
    settings: Settings,
    asset: str,
    name: str,
    description: str,
    find: Callable[[Subject], Report],
    *,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetChecksDefinition:
    """Return a check of an asset that is a step of its own; see :class:`Check`."""
    check = Check(name, description, find, severity)

    @dg.asset_check(
        asset=naming.key(asset),
        name=check.name,
        description=check.description,
        required_resource_keys=_resources(naming, [check]),
    )
    def one(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        return _result(naming, settings, asset, check, context)

    return one


def build_check_step(
    naming: Naming, settings: Settings, asset: str, checks: Sequence[Check]
) -> dg.AssetChecksDefinition:
    """Return checks of an asset that are one step: one reads files while another waits for the archive.

    Each can be run alone too. One that fails to run fails the step, after the results of the others.
    """
    key = naming.key(asset)

    @dg.multi_asset_check(
        name=naming.of(f"check_{asset}"),
        specs=[dg.AssetCheckSpec(check.name, asset=key, description=check.description) for check in checks],
        required_resource_keys=_resources(naming, checks),
        can_subset=True,
    )
    def step(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        selected = {each.name for each in context.selected_asset_check_keys}
        failures = []
        # One lane for those that ask the archive, and one for the others: each has a large table in memory.
        with ExitStack() as lanes:
            pools = [lanes.enter_context(stopping.threads(1, name)) for name in ("nbia-checks", "nbia-checks-archive")]
            results = [
                pools[check.needs_archive].submit(_result, naming, settings, asset, check, context)
                for check in checks
                if check.name in selected
            ]
            wait(results)
        for result in results:
            if failure := result.exception():
                failures.append(failure)
            else:
                yield result.result()
        if failures:
            raise failures[0]

    return step


def _resources(naming: Naming, checks: Sequence[Check]) -> set[str]:
    return {naming.lake, *([naming.archive] if any(check.needs_archive for check in checks) else [])}


def _result(
    naming: Naming, settings: Settings, asset: str, check: Check, context: dg.AssetCheckExecutionContext
) -> dg.AssetCheckResult:
    step = context.op_execution_context
    with as_failure(settings):
        subject = Subject(
            naming.lake_of(context).open(write=False),
            settings,
            naming.archive_of(context) if check.needs_archive else None,
            list(step.partition_keys) if step.has_partition_key or step.has_partition_key_range else [],
        )
        try:
            report = check.find(subject)
            findings = iter(report.findings)
            first = list(islice(findings, SHOWN))
            by_collection = Counter(finding.collection for finding in chain(first, findings))
        except DamagedFile as e:
            report = Report([], remedy=lambda first: "nbia-pipeline verify --repair")
            first = [Finding(subject.collections[0] if len(subject.collections) == 1 else "", str(e))]
            by_collection = Counter([first[0].collection])
    count = by_collection.total()
    metadata: dict[str, Any] = {"findings": count, **report.properties}
    if len(by_collection) > 1:
        most = by_collection.most_common(COLLECTIONS_SHOWN)
        metadata["collections"] = records({"collection": name, "findings": n} for name, n in most)
    text = check.description
    if first:
        rows = ({"collection": f.collection, "series": f.series or "", "finding": f.what} for f in first)
        metadata["first_findings"] = records(rows)
        # The UI takes the description for Markdown, in which an image is fetched from wherever its author says.
        plural = "" if count == 1 else "s"
        text += f" It failed with {count} finding{plural}; the first: {markdown_code(first[0].what)}"
        if remedy := report.remedy(first):
            metadata["remedy"] = dg.MetadataValue.md(markdown_code(remedy))
            short = textwrap.shorten(remedy, REMEDY_CHARACTERS, placeholder=" ...")
            text += f". To fix it: {markdown_code(short)}"
    return dg.AssetCheckResult(
        check_name=check.name,
        asset_key=naming.key(asset),
        passed=not first,
        metadata=metadata,
        description=text,
        severity=check.severity,
    )
