"""The images of a shared cart: a colleague's selection, mirrored. Only the plan and the end differ from `images`.

The files and receipts go where they belong, to their collections. A cart is a wish of its own: its collections need
not be named in NBIA_IMAGES, and the check `complete` of `images` does not judge those that are not.
"""

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.defs.assets.fetch_op import build_fetch_op, collections_of, failed_table
from nbia_pipeline.defs.assets.finish import STATUSES, expect_all, problem_rows, run_metadata
from nbia_pipeline.defs.assets.images import RunBounds, plan_text, planned_outputs
from nbia_pipeline.defs.assets.settling import committed
from nbia_pipeline.defs.failures import as_failure
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.cart import cart_series, whole_listing
from nbia_pipeline.mirror.commit import staged_by_journal
from nbia_pipeline.mirror.licenses import keep_licenses
from nbia_pipeline.mirror.plan import expect_room, make_plan
from nbia_pipeline.mirror.series import WantedSeries, as_table, wanted_series
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline.settings import Settings

NAME = "cart_images"
DESCRIPTION = (
    "The image files of a shared cart, verified as those of images, and in the same place. Add the cart's name as a "
    "partition, then materialize it. API v2 only."
)
WHOLE = "series_in_lake"


def build_cart_asset(names: Naming, settings: Settings) -> dg.AssetsDefinition:
    """Return the ``cart_images`` asset of one archive."""
    plan, finish = _plan_op(names, settings), _finish_op(names, settings)
    fetch = build_fetch_op(names, settings, NAME, commit=commit_fetched)

    @dg.graph_asset(
        name=NAME,
        key_prefix=names.prefix,
        partitions_def=names.carts,
        description=DESCRIPTION,
        group_name="images",
        kinds={"dicom", "file"},
    )
    def cart_images() -> Any:
        found, summary = plan()
        return finish(summary, found.map(fetch).collect())

    return cart_images


def _plan_op(names: Naming, settings: Settings) -> dg.OpDefinition:
    @dg.op(
        name=names.of(f"plan_{NAME}"),
        out={"found": dg.DynamicOut(list), "summary": dg.Out(dict)},
        required_resource_keys={names.archive, names.lake},
    )
    def plan_cart_images(context: dg.OpExecutionContext, config: RunBounds) -> Any:
        cart = context.partition_key
        started = time.time()
        with as_failure(settings), names.archive_of(context).client() as client:
            lake = names.lake_of(context).open()
            series = cart_series(client, lake, cart)
            wanted = wanted_series(series)
            receipts = committed_of(lake, wanted)
            lake.sweep(keep=staged_by_journal(lake))
            plan = make_plan(
                series, receipts, max_bytes=config.max_bytes, max_series=config.max_series, retry=config.retry
            )
            context.log.info(f"cart {cart}: {plan_text(plan, lake)}")
            expect_room(lake, plan)
            for collection in collections_of(wanted):
                keep_licenses(client, lake, collection, whole_listing(lake, collection, series))
        yield from planned_outputs(plan, config.batch_series, started, series=[w.to_json() for w in wanted])

    return plan_cart_images


def _finish_op(names: Naming, settings: Settings) -> dg.OpDefinition:
    @dg.op(name=names.of(f"finish_{NAME}"), out=dg.Out(dg.Nothing), required_resource_keys={names.lake})
    def finish_cart_images(context: dg.OpExecutionContext, summary: dict[str, Any], reports: list[Any]) -> Any:
        expect_all(summary, reports)
        wanted = [WantedSeries.from_json(w) for w in summary["series"]]
        with as_failure(settings):
            receipts = committed_of(names.lake_of(context).open(), wanted)
        status = Counter(receipts["Status"].to_pylist())
        collections = Counter(w.Collection for w in wanted)
        failed = problem_rows(receipts)
        metadata = {
            "series": len(wanted),
            WHOLE: make_plan(as_table(wanted), receipts).done,
            **{s: status[s] for s in STATUSES},
            "bytes": pc.sum(receipts["Bytes"]).as_py() or 0,
            "collections": dg.MetadataValue.table(
                [dg.TableRecord({"collection": c, "series": n}) for c, n in sorted(collections.items())],
                dg.TableSchema([dg.TableColumn("collection", "string"), dg.TableColumn("series", "int")]),
            ),
            **({"problems": failed_table(failed)} if failed else {}),
            **run_metadata(summary, reports),
        }
        yield dg.Output(None, metadata=metadata)

    return finish_cart_images


def committed_of(lake: Lake, wanted: list[WantedSeries]) -> pa.Table:
    """Settle the collections of some series, and return the receipts of these.

    Only these are noted as pending where they have no receipt: nobody asked for the rest of their collections.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    rows = as_table(wanted)
    found = [IMAGE_SERIES.schema.empty_table()]
    for collection in collections_of(wanted):
        of_it = rows.filter(pc.equal(rows["Collection"], collection))
        receipts = committed(lake, collection, of_it)
        uids = of_it["SeriesInstanceUID"].combine_chunks()
        found.append(receipts.filter(pc.is_in(receipts["SeriesInstanceUID"], value_set=uids)))
    return pa.concat_tables(found)


def commit_fetched(lake: Lake, collection: str) -> None:
    """Carry the journal over at the end of a batch of a run in which one failed; nothing is noted as pending.

    Raises:
        LakeError: the lake cannot be read or written.
    """
    committed(lake, collection, as_table([]), clear_mark=False)


# --- the check


def build_cart_check(names: Naming) -> dg.AssetChecksDefinition:
    """Return the check that every cart that was ever asked for is whole, by its last run."""

    @dg.asset_check(
        asset=names.key(NAME),
        name="complete",
        description="Every series of each cart was in the lake, whole, verified and as listed, after its last run.",
    )
    def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        short = list(_incomplete(context.instance, names))
        rows = [dg.TableRecord({"cart": cart, "series": series, "in_lake": there}) for cart, series, there in short]
        metadata: dict[str, Any] = {"carts_short": len(short)}
        if rows:
            metadata["carts"] = dg.MetadataValue.table(rows)
        return dg.AssetCheckResult(passed=not short, metadata=metadata)

    return check


def _incomplete(instance: dg.DagsterInstance, names: Naming) -> Iterator[tuple[str, int, int]]:
    """Yield the carts that lack series: the name, how many it has, and how many are there."""
    for cart in instance.get_dynamic_partitions(str(names.carts.name)):
        last = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=names.key(NAME), asset_partitions=[cart]), limit=1
        ).records
        if last and last[0].asset_materialization is not None:
            figures = last[0].asset_materialization.metadata
            series, there = (int(str(figures[name].value)) for name in ("series", WHOLE))
            if there < series:
                yield cart, series, there
