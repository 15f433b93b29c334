"""What the references of the images of a run lead to, fetched in one step, which a run without them skips."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import dagster as dg

from nbia_pipeline.defs.assets.fetch_op import RETRY, SHOWN, failed_table
from nbia_pipeline.defs.failures import as_failure, interrupts_end_the_run
from nbia_pipeline.defs.metadata import records
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.mirror.commit import commit_journal
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.plan import Bounds
from nbia_pipeline.mirror.references.closure import KINDS, Followed
from nbia_pipeline.mirror.selection import Selection, SelectionError, Selections
from nbia_pipeline.schema.status import COMPLETE
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import shown, size_text


def asked_of(
    kinds: Sequence[str], collections: Sequence[str], selection: Selection, bounds: Bounds
) -> dict[str, dict[str, Any]]:
    """Return what the step must know, as a part of the summary of a plan; nothing where nothing is asked for.

    Raises:
        SelectionError: something else is asked for than there is.
    """
    unknown = sorted(set(kinds).difference(KINDS))
    if unknown:
        raise SelectionError(f"with_references names {', '.join(unknown)}: it can name {' and '.join(KINDS)}")
    if not kinds:
        return {}
    given = {"kinds": list(kinds), "collections": list(collections)}
    return {"references": {**given, "selection": asdict(selection), "bounds": asdict(bounds)}}


def build_follow_op(naming: Naming, settings: Settings, what: str, selections: Selections) -> dg.OpDefinition:
    """Return the op that fetches what the references of selected series lead to.

    Args:
        what: what is fetched, as part of the op's name.
        selections: those of the configuration, which select besides the run.
    """

    @dg.op(
        name=naming.of(f"fetch_references_of_{what}"),
        pool=naming.pool,
        retry_policy=RETRY,
        out=dg.Out(dict, io_manager_key=naming.steps),
        required_resource_keys={naming.archive, naming.lake},
    )
    @interrupts_end_the_run()
    def follow(context: dg.OpExecutionContext, asked: dict[str, Any], reports: list[Any]) -> dict[str, Any]:
        selection = Selection(**{name: tuple(values) for name, values in asked["selection"].items()})
        series, size = (sum(report[name] for report in reports) for name in ("fetched", "bytes"))
        found = {}
        with as_failure(settings), naming.archive_of(context).client() as client:
            mirror = Mirror(client, naming.lake_of(context).open(), selections=selections)
            for collection in asked["collections"]:
                commit_journal(mirror.lake, collection)
            for collection in asked["collections"]:
                followed = mirror.fetch_references(
                    [collection],
                    selection,
                    asked["kinds"],
                    Bounds(**asked["bounds"]),
                    fetched=(series, size),
                    on_progress=partial(_tell, context, collection),
                )
                series, size = series + len(followed.fetched), size + followed.bytes
                found[collection] = _report(followed)
        return {"references": found}

    return follow


def _tell(context: dg.OpExecutionContext, collection: str, line: str) -> None:
    context.log.info(shown(f"{collection}, {line}"))


def _report(followed: Followed) -> dict[str, Any]:
    """Return what came of following references, as plain JSON values."""
    failed = {r.wanted.SeriesInstanceUID: f"{r.status}: {r.reason}" for r in followed.receipts if r.status != COMPLETE}
    return {
        "series": len(followed.fetched),
        "files": sum(len(r.instances) for r in followed.fetched),
        "bytes": followed.bytes,
        "there": followed.there,
        "left": len(followed.left),
        "failed": failed,
        "lost": followed.lost,
    }


def references_metadata(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what came of following references, for people and as numbers; nothing if none were followed."""
    if not found:
        return {}
    series, files, size, there, left = (
        sum(one[name] for one in found) for name in ("series", "files", "bytes", "there", "left")
    )
    failed, lost = ({uid: text for one in found for uid, text in one[name].items()} for name in ("failed", "lost"))
    rows = [{"series": uid, "what": what} for uid, what in failed.items()]
    orphans = [{"uid": uid, "referenced by": referrer} for uid, referrer in lost.items()]
    return {
        "referenced": f"{series:,} series, {files:,} files, {size_text(size)}; {there:,} were in the lake already",
        "referenced_series": series,
        "referenced_files": files,
        "referenced_bytes": size,
        "referenced_there": there,
        "referenced_left": left,
        "referenced_failed": len(failed),
        "referenced_not_found": len(lost),
        **({"referenced_problems": failed_table(rows)} if rows else {}),
        **({"referenced_nowhere": records(orphans[:SHOWN], dict.fromkeys(orphans[0], "string"))} if orphans else {}),
    }
