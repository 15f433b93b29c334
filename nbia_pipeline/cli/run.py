"""``nbia-pipeline run``: the main job from start to end, in one process: catalog, tables, images."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbia_pipeline._version import __version__
from nbia_pipeline.cli.home import dagster_home, fail, live_progress, report, say, to_stderr
from nbia_pipeline.cli.options import (
    Options,
    as_command,
    collections_argument,
    expect_found,
    images_fields,
    option,
    selection_of,
    settings_of,
    with_rate,
    with_selection,
)
from nbia_pipeline.cli.referenced import references_fields, references_lines, with_references
from nbia_pipeline.cli.signals import STOP, kept_from_children
from nbia_pipeline.connect import connect
from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import COUNTED
from nbia_pipeline.settings import Settings, SettingsError, variable_of
from nbia_pipeline.text import did_you_mean, first_of, matching, size_text, table_text, unmatched

if TYPE_CHECKING:
    import dagster as dg

    from nbia_pipeline.defs.main_job import Outcome


# A line of Progress in the events of a run; the terminal has a livelier one.
_PROGRESS = re.compile(r"    .+: [\d,]+ of [\d,]+ series, [^;]+/s, [^;]+")
_INTERRUPTED = "Stopped   interrupted: what was finished is in the lake; the next run fetches the rest."


@as_command()
@collections_argument("names or globs; their images are mirrored in this run (default: those of NBIA_IMAGES)")
@with_selection
@with_references
@with_rate
@option(
    "--allow-lost-columns",
    is_flag=True,
    help="accept answers in which a column is empty that used to be full",
)
def command(options: Options) -> int:
    """Materialize tables and images, and show what was done.

    A collection that fails does not stop the others. What is in the lake already is not fetched again, so that a run
    which was stopped continues with the next one.
    """
    _start_embedded()
    _do_without_pandas()
    import dagster as dg

    from nbia_pipeline.defs.naming import Naming
    from nbia_pipeline.defs.records import kept_open
    from nbia_pipeline.defs.slots import watched

    settings, only = _with_collections(settings_of(options), options.collections)
    lake, selection = Lake(settings.lake), selection_of(options, settings)  # an error comes before anything begins
    home = dagster_home()
    say(f"nbia-pipeline {__version__}: from {settings.archive} ({settings.api}) to {settings.lake}", "")
    with (
        kept_from_children(),
        kept_open(),
        dg.DagsterInstance.get() as instance,
        watched(instance, Naming().pool, to_stderr, _terminated),
        live_progress(),
    ):
        outcome = run_main_job(
            settings,
            instance,
            lambda line: None if _PROGRESS.fullmatch(line) else say(line),
            images={**images_fields(options), **references_fields(options)},
            collections=only,
            allow_lost_columns=options.allow_lost_columns,
            on_tables=lambda mirrored: expect_found(options, selection, lake, mirrored),
        )
    report(_figures(settings, outcome))
    say(*summary(outcome, home).split("\n"))
    for name, found in outcome.warnings.items():
        to_stderr(f"warning: {name}: {found}")
    for problem in outcome.problems:
        to_stderr(problem)
    if outcome.interrupted:
        return fail(
            "interrupted; finished series are in the lake, and the next run continues from there", STOP.exit_code
        )
    return 1 if outcome.problems else 0


def _with_collections(settings: Settings, patterns: Sequence[str]) -> tuple[Settings, list[str]]:
    """Return settings which mirror what is named besides what they name, and the names of what is.

    Raises:
        SettingsError: the archive does not list one of them.
        ArchiveError: it cannot be asked.
    """
    if not patterns:
        return settings, []
    with connect(settings) as client:
        listed = client.collection_values()
    for name, similar in unmatched(patterns, listed).items():
        hint = did_you_mean(similar, f"it lists {first_of(listed)}")
        raise SettingsError(f"the archive lists no collection {name!r} for this account: {hint}")
    named = matching(patterns, listed)
    more = {"collections": (*settings.collections, *named), "images": (*(settings.images or ()), *named)}
    return settings.model_copy(update=more), named


def _figures(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    return {
        "archive": settings.archive,
        "lake": settings.lake,
        "collections": outcome.collections,
        "fetched": outcome.fetched,
        "headers": outcome.of_headers,
        "checks": outcome.checks,
        "warnings": outcome.warnings,
        "problems": outcome.problems,
        "seconds": outcome.seconds,
        "interrupted": outcome.interrupted,
    }


def summary(outcome: Outcome, home: Path) -> str:
    """Return the summary of a run: what the lake has, what was verified, how long it took, how to see it.

    Its events are in the DAGSTER_HOME `home`.
    """
    if not outcome.collections:
        return f"\n{_INTERRUPTED}" if outcome.interrupted else ""
    header = ["collection", *(t.name for t in COUNTED), "images", "files", "size"]
    rows = [_cells(name, figures) for name, figures in outcome.collections.items()]
    total = sum(outcome.collections.values(), Counter[str]())
    unwanted = any(f["complete"] and not f["wanted"] for f in outcome.collections.values())
    table = table_text([header, *rows, _cells("total", total, of_wanted=not unwanted)])
    return "\n".join(["", table, "", *_sentences(outcome, total, home)])


def _cells(name: str, figures: Counter[str], *, of_wanted: bool = True) -> list[str]:
    """Return a row; where images are not mirrored, it has those that are in the lake all the same."""
    rows = (str(figures[t.name]) for t in COUNTED)
    complete, wanted = figures["complete"], figures["wanted"]
    images = f"{complete} of {wanted}" if wanted and of_wanted else str(complete or "-")
    return [name, *rows, images, str(figures["files"]), size_text(figures["bytes"])]


def _sentences(outcome: Outcome, total: Counter[str], home: Path) -> list[str]:
    n, lines = outcome.fetched, []
    if not total["wanted"] and not outcome.interrupted:  # else it may not be listed yet what is wanted
        lines = [f"Images    not mirrored: {variable_of('images')} names the collections whose images are mirrored."]
    elif n["fetched_series"]:
        lines = [
            f"Fetched   {n['fetched_series']} series, {n['fetched_files']} files, {size_text(n['fetched_bytes'])}; "
            f"{n['skipped_series']} series were already in the lake.",
            "Verified  when fetched: every file has the MD5 that the archive lists, is DICOM, and belongs to its "
            "series;",
            "          every series has the SOPInstanceUIDs that the archive lists, and their count.",
        ]
    elif total["wanted"]:
        lines = [f"Fetched   no images: {n['skipped_series']} series were already in the lake."]
    lines += references_lines(n)
    if n["healed_instances"]:
        lines.append(f"Repaired  {n['healed_instances']} images that were missing or damaged, one by one.")
    if n["quarantined"] or n["unavailable"]:
        lines.append(
            f"Missing   {n['quarantined']} series are quarantined, {n['unavailable']} unavailable: table image_series "
            "has the reasons."
        )
    if n["left_series"]:
        lines.append(f"Pending   {n['left_series']} series, for a later run.")
    if total["not_selected"]:
        wanted = total["wanted"] + total["not_selected"]
        lines.append(f"Selected  {total['wanted']} of {wanted} series, by {variable_of('select')}.")
    lines += _of_headers(outcome.of_headers)
    failed, warned = _checks_of(outcome.failed_checks), _checks_of(outcome.warnings)
    passed = _checks_of(outcome.checks) - failed - warned
    checks = f"{len(passed)} asset checks passed, {len(failed)} failed"
    if warned:
        checks += f", {len(warned)} warned"
    parts = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in outcome.seconds.items())
    in_checkout = Path("Makefile").is_file() and Path("workspace.yaml").is_file()
    dev = "make dev" if in_checkout else f"DAGSTER_HOME='{home}' nbia-pipeline dev"
    if outcome.interrupted:
        lines.insert(0, _INTERRUPTED)
    return [
        *lines,
        f"Checked   {checks}.",
        f"Took      {sum(outcome.seconds.values()):.1f} s: {parts}.",
        f"See it    {dev}, then http://localhost:3000",
    ]


def _of_headers(n: Mapping[str, int]) -> list[str]:
    """Return what is known of headers and references, and what is wrong with them."""
    if not n["files"]:
        return []
    problems = f", {n['files_with_problems']} with problems" if n["files_with_problems"] else ""
    orphans = f"; {n['orphans']} of annotations do not lead to their images" if n["orphans"] else ""
    return [
        f"Headers   of {n['files']} files are in the tables{problems}; {n['read_files']} were read now.",
        f"          They state {n['references']} references to series{orphans}.",
    ]


def _checks_of(results: Iterable[str]) -> set[str]:
    """Return of which checks some results are, by asset and name, whatever collection each is about."""
    return {" ".join(name.split(" ")[:2]) for name in results}


def _terminated(run_id: str) -> None:
    """Stop, because somebody canceled a run of this process."""
    if STOP.signal is None:
        to_stderr(f"run {run_id} was terminated in the UI")
        STOP.request()


def run_main_job(
    settings: Settings,
    instance: dg.DagsterInstance,
    on_progress: Callable[[str], None] = lambda line: None,
    images: Mapping[str, Any] | None = None,
    **how: Any,
) -> Outcome:
    """Run the main job of the settings in this process; see :func:`nbia_pipeline.defs.main_job.run_main_job`."""
    from nbia_pipeline.definitions import build_definitions
    from nbia_pipeline.defs import main_job
    from nbia_pipeline.defs.naming import Naming

    naming = Naming()
    return main_job.run_main_job(
        settings,
        naming,
        build_definitions(settings, naming).resolve_job_def,
        instance,
        on_progress,
        images,
        **how,
        stop=STOP,
    )


def _start_embedded() -> None:
    """Begin to start the embedded archive if the command needs it: it takes a second, as the import of Dagster does.

    A run asks for all images soon, so that the archive may make them while the tables are fetched.
    """
    if os.environ.get("NBIA_ARCHIVE", "") not in ("", "embedded"):
        return

    def start() -> None:
        launcher = import_module("nbia_pipeline.embedded.launcher")
        with suppress(launcher.EmbeddedArchiveError, OSError):  # the first step that needs it meets this too
            launcher.ensure_running(render_ahead=True)

    threading.Thread(target=start, name="nbia-embedded", daemon=True).start()


class _Hidden:
    """Finds no pandas."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _do_without_pandas() -> None:
    """Let pyarrow find no pandas: it imports it with its first array, for a third of a second, and nothing uses it."""
    finders: list[Any] = sys.meta_path
    finders.insert(0, _Hidden)
    try:
        import_module("pyarrow").array([0])  # looks for it once, and remembers what it found
    finally:
        finders.remove(_Hidden)
