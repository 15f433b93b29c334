"""The specs of the assets: keys, groups, descriptions, kinds and the like; and the translator that changes them.

Everything that names an asset asks :meth:`nbia_pipeline.defs.naming.Naming.key`, which reads the key here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import dagster as dg

from nbia_pipeline.changes.catalog import VALUES
from nbia_pipeline.changes.listing import LISTED
from nbia_pipeline.defs.metadata import definition_metadata
from nbia_pipeline.schema import Table, headers
from nbia_pipeline.schema import tables as t
from nbia_pipeline.settings import SettingsError

# By this the UI shows which tables are stale: the schedules list everything once a day. Images have no such policy: if
# nothing is new, they are not materialized.
FRESH = dg.FreshnessPolicy.time_window(warn_window=timedelta(days=2), fail_window=timedelta(days=3))

IMAGES = (
    "The image files of the collection, one per instance, each verified. A series is in the lake complete or not at "
    "all; its receipt is in table image_series, and its files are listed in table instances."
)
HEADERS = (
    "The headers of the image files of the collection, every element of each: tables instance_headers, "
    "series_geometry, instance_references and annotations."
)
NEWS = "Report: the patients and studies of the collection that have a series released since a given day."

FIXED = {
    "partitions_def": "each collection is one partition",
    "deps": "the jobs run the assets in this order",
    "skippable": "no asset is skipped",
}
"""What a translator cannot change, and why."""

Conditions = Mapping[str, "dg.AutomationCondition[Any]"]
"""Automation conditions by the name of the asset."""


@dataclass(frozen=True)
class NbiaAssetData:
    """What a translator is asked about.

    Attributes:
        name: of the asset in this documentation, such as ``series`` or ``images``; of a table, also its directory in
            the lake. No translator changes it.
        archive: the prefix of the archive; ``nbia`` unless there is a second one.
        spec: the asset as it is without a translator.
    """

    name: str
    archive: str
    spec: dg.AssetSpec


class NbiaTranslator:
    """What Dagster is told about the assets of an archive; subclass it to change that.

    Keys, groups, owners, tags, kinds, descriptions, metadata, automation conditions and freshness policies can be
    changed. Jobs, checks, sensors and schedules follow the keys; so do the names of ops in run config.

    Example:

    .. code-block:: python

        import dagster as dg
        from nbia_pipeline import NbiaTranslator, build_definitions

        class Ours(NbiaTranslator):
            def get_asset_spec(self, data):
                spec = super().get_asset_spec(data)
                return spec.replace_attributes(
                    key=["imaging", "tcia", data.name], owners=["team:imaging"], tags={"domain": "radiology"}
                )

        defs = build_definitions(settings, translator=Ours())
    """

    def get_asset_spec(self, data: NbiaAssetData) -> dg.AssetSpec:
        """Return the spec of an asset; it begins as ``data.spec``."""
        return data.spec


def asset_specs(
    prefix: str,
    collections: dg.PartitionsDefinition[str],
    conditions: Conditions,
    translator: NbiaTranslator,
) -> dict[str, dg.AssetSpec]:
    """Return the spec of every asset by its name, as the translator has it; without dependencies.

    Raises:
        SettingsError: the translator changes what is fixed, returns no spec, or gives two assets one key.
    """
    found: dict[str, dg.AssetSpec] = {}
    names: dict[dg.AssetKey, str] = {}
    for spec in _specs(prefix, collections, conditions):
        name = spec.key.path[-1]
        found[name] = _translated(translator, NbiaAssetData(name, prefix, spec))
        key = found[name].key
        if key in names:
            both = f"{names[key]} and {name}"
            raise SettingsError(f"the translation gives {both} the same key, {key.to_user_string()}: make them differ")
        names[key] = name
    return found


def _specs(
    prefix: str,
    collections: dg.PartitionsDefinition[str],
    conditions: Conditions,
) -> list[dg.AssetSpec]:
    def spec(name: str, group: str, kinds: set[str], description: str, **more: Any) -> dg.AssetSpec:
        more["automation_condition"] = conditions.get(name)
        return dg.AssetSpec([prefix, name], group_name=group, kinds=kinds, description=description, **more)

    def table(table: Table, group: str, **more: Any) -> dg.AssetSpec:
        return spec(table.name, group, {"parquet"}, table.description, metadata=definition_metadata(table), **more)

    files, by_collection = {"dicom", "file"}, {"partitions_def": collections}
    references = headers.SERIES_REFERENCES
    of_headers, of_references = definition_metadata(headers.INSTANCE_HEADERS), definition_metadata(references)
    partitioned = (*LISTED, t.SERIES_CHANGES, t.SERIES_METADATA)
    return [
        *(table(one, "catalog", freshness_policy=FRESH) for one in (t.COLLECTIONS, *VALUES)),
        *(table(one, "tables", freshness_policy=FRESH, **by_collection) for one in partitioned),
        spec("images", "images", files, IMAGES, metadata=definition_metadata(t.IMAGE_SERIES), **by_collection),
        table(t.ANNOTATION_FILES, "images", **by_collection),
        spec("headers", "headers", {"parquet"}, HEADERS, metadata=of_headers, **by_collection),
        spec("references", "headers", {"parquet"}, references.description, metadata=of_references, **by_collection),
        spec("news", "reports", {"report"}, NEWS, **by_collection),
    ]


def _translated(translator: NbiaTranslator, data: NbiaAssetData) -> dg.AssetSpec:
    spec = translator.get_asset_spec(data)
    if not isinstance(spec, dg.AssetSpec):
        raise SettingsError(f"the translation of {data.name} returns no AssetSpec, but {type(spec).__name__}")
    for field, why in FIXED.items():
        if getattr(spec, field) != getattr(data.spec, field):
            raise SettingsError(f"the translation of {data.name} changes {field}: leave it as it is, because {why}")
    return spec
