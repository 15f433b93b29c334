"""The job of a shared cart: a colleague's selection, mirrored by the steps that the images have.

The files and receipts are stored with their collections. A cart is asked for by itself: its collections
need not be named in NBIA_IMAGES, and the check `complete` of `images` leaves out those that are not.
"""

from collections import Counter
from functools import partial
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from nbia_pipeline.defs.assets.fetch_op import build_fetch_op
from nbia_pipeline.defs.assets.follow_op import asked_of, build_follow_op, references_metadata
from nbia_pipeline.defs.assets.images import (
    RunBounds,
    build_plan_op,
    expect_all,
    receipts_metadata,
    run_metadata,
    short_config,
    tell,
)
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.jobs import ARCHIVE_TAG, CART_JOB, RETRY_WHOLE
from nbia_pipeline.defs.metadata import records
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.plan import Plan, make_plan
from nbia_pipeline.mirror.selection import ALL_WANTED, Selection
from nbia_pipeline.mirror.series import WantedSeries, as_table, collections_of
from nbia_pipeline.schema.status import PENDING
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import shown

DESCRIPTION = (
    "Mirrors the series of a shared cart into the collections that they belong to. In the Launchpad, name the cart: "
    "`cart: A colleague's cart`. API v2 only."
)


class CartConfig(RunBounds):
    """Which cart to fetch, and how much of it."""

    cart: str = Field(min_length=1, description="Name of the shared cart, as the archive spells it.")


def build_cart_job(naming: Naming, settings: Settings, executor: dg.ExecutorDefinition | None) -> dg.JobDefinition:
    """Return the job that mirrors one shared cart, whose name is in its run config."""
    plan = build_plan_op(naming, settings, CART_JOB, CartConfig, _plan)
    fetch = build_fetch_op(naming, settings, CART_JOB)
    follow = build_follow_op(naming, settings, CART_JOB, ALL_WANTED)

    @dg.op(name=naming.of(f"finish_{CART_JOB}"), out=dg.Out(dg.Nothing), required_resource_keys={naming.lake})
    def finish(context: dg.OpExecutionContext, summaries: list[Any], reports: list[Any]) -> Any:
        summary, followed = summaries[0], summaries[1:]
        expect_all(summary, reports)
        with as_failure(settings):
            figures, missing = _finish(naming.lake_of(context).open(), summary, reports)
        figures |= references_metadata([one for f in followed for one in f["references"].values()])
        if missing:
            raise dg.Failure(
                shown(
                    f"{missing} series of the cart {summary['cart']!r} could not be fetched, or not in their newest "
                    f"version: the metadata of this step has the reasons"
                ),
                metadata=figures,
                allow_retries=False,
            )
        yield dg.Output(None, metadata=figures)

    @dg.graph(name=naming.of(CART_JOB))
    def cart() -> Any:
        found, summary, asked = plan()
        reports = found.map(fetch).collect()
        return finish([summary, follow(asked, reports)], reports)

    return cart.to_job(
        description=DESCRIPTION,
        config=short_config(CartConfig, plan, of_job=True),
        tags={ARCHIVE_TAG: naming.prefix, **RETRY_WHOLE},
        executor_def=executor,
    )


def _plan(context: dg.OpExecutionContext, config: CartConfig, mirror: Mirror) -> tuple[Plan, dict[str, Any]]:
    plan, wanted = mirror.plan_cart(config.cart, config.bounds(), on_progress=partial(tell, context))
    selection = Selection(series=tuple(w.SeriesInstanceUID for w in wanted))
    return plan, {
        **asked_of(config.with_references, collections_of(wanted), selection, config.bounds()),
        "cart": config.cart,
        "series": [w.to_json() for w in wanted],
        "before": {"done": plan.done, "left": len(plan.left) + len(plan.no_room)},
    }


def _finish(lake: Lake, summary: dict[str, Any], reports: list[Any]) -> tuple[dict[str, Any], int]:
    """Commit the collections of the cart; return the figures, and how many series could not be fetched."""
    wanted = [WantedSeries.from_json(w) for w in summary["series"]]
    receipts = _committed(lake, wanted)
    collections = Counter(w.Collection for w in wanted)
    figures = receipts_metadata(receipts)
    there = make_plan(as_table(wanted), receipts).done
    counts = [counts for report in reports for counts in report["partitions"].values()]
    return {
        "cart": shown(summary["cart"]),
        "series": len(wanted),
        "series_in_lake": there,
        **figures,
        "collections": records(
            ({"collection": c, "series": n} for c, n in sorted(collections.items())),
            {"collection": "string", "series": "int"},
        ),
        **run_metadata(summary["started"], reports, counts, **summary["before"]),
    }, len(wanted) - there - figures[PENDING]


def _committed(lake: Lake, wanted: list[WantedSeries]) -> pa.Table:
    """Commit the collections of some series, and return the receipts of these.

    Only these become pending where they have no receipt: nobody asked for the rest of their collections.
    """
    found = [IMAGE_SERIES.schema.empty_table()]
    for collection in collections_of(wanted):
        rows = as_table(w for w in wanted if w.Collection == collection)
        receipts = commit(lake, collection, rows)
        uids = rows["SeriesInstanceUID"].combine_chunks()
        found.append(receipts.filter(pc.is_in(receipts["SeriesInstanceUID"], value_set=uids)))
    return pa.concat_tables(found)
