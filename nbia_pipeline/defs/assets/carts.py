"""The images of a shared cart: a colleague's selection, mirrored. Only the plan and the end differ from `images`.

The files and receipts are stored with their collections. A cart is asked for by itself: its collections
need not be named in NBIA_IMAGES, and the check `complete` of `images` leaves out those that are not.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.defs.assets.images import RunBounds, build_ops, receipts_metadata, tell
from nbia_pipeline.defs.metadata import records
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.commit import commit
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.plan import Plan, make_plan
from nbia_pipeline.mirror.series import WantedSeries, as_table, collections_of
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings

NAME = "cart_images"
WHOLE = "series_in_lake"


def build_cart_asset(naming: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``cart_images`` asset of one archive."""
    plan, fetch, finish = build_ops(naming, settings, NAME, RunBounds, _plan, _finish)

    @dg.graph_asset(key=naming.key(NAME), partitions_def=naming.carts)
    def cart_images() -> Any:
        found, summary = plan()
        return finish(summary, found.map(fetch).collect())

    return cart_images


def _plan(context: dg.OpExecutionContext, config: RunBounds, mirror: Mirror) -> tuple[Plan, dict[str, Any]]:
    cart = context.partition_key
    plan, wanted = mirror.plan_cart(cart, config.bounds(), on_progress=partial(tell, context))
    before = {"done": plan.done, "left": len(plan.left) + len(plan.no_room)}
    return plan, {"series": [w.to_json() for w in wanted], "partitions": {cart: before}}


def _finish(
    context: Any, lake: Lake, summary: dict[str, Any], reports: list[Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    wanted = [WantedSeries.from_json(w) for w in summary["series"]]
    receipts = _committed(lake, wanted)
    collections = Counter(w.Collection for w in wanted)
    figures = {
        "series": len(wanted),
        WHOLE: make_plan(as_table(wanted), receipts).done,
        **receipts_metadata(receipts),
        "collections": records(
            ({"collection": c, "series": n} for c, n in sorted(collections.items())),
            {"collection": "string", "series": "int"},
        ),
    }
    return {context.partition_key: figures}, {}


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


# --- the check


def build_cart_check(naming: Naming) -> dg.AssetChecksDefinition:
    """Return the check that every cart ever asked for is complete, as of its last run."""

    @dg.asset_check(
        asset=naming.key(NAME),
        name="complete",
        description="Every series of each cart was in the lake, complete, verified and as listed, after its last run.",
    )
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        rows = list(_incomplete(context.instance, naming))
        metadata: dict[str, Any] = {"carts_short": len(rows)}
        if rows:
            metadata["carts"] = records(rows)
        return dg.AssetCheckResult(passed=not rows, metadata=metadata)

    return check


def _incomplete(instance: dg.DagsterInstance, naming: Naming) -> Iterator[dict[str, str | int]]:
    """Yield the carts that lack series: the name, how many it has, and how many are there."""
    for cart in instance.get_dynamic_partitions(str(naming.carts.name)):
        last = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=naming.key(NAME), asset_partitions=[cart]), limit=1
        ).records
        if last and last[0].asset_materialization is not None:
            figures = last[0].asset_materialization.metadata
            series, there = (int(str(figures[name].value)) for name in ("series", WHOLE))
            if there < series:
                yield {"cart": cart, "series": series, "in_lake": there}
