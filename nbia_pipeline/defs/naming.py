"""The names that belong to one archive, so that two archives fit into one code location; and its partitions.

There is one partition per collection, never one per series: an archive has a million of those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby

import dagster as dg

from nbia_pipeline.defs.resources import LakeResource, NbiaResource
from nbia_pipeline.defs.specs.translator import Conditions, NbiaTranslator, asset_specs
from nbia_pipeline.text import logger

PREFIX = "nbia"

log = logger(__name__)

# What Dagster refuses; and what would act on a terminal that Dagster prints the name to: controls, marks of direction.
_NO_PARTITION = re.compile(r"^$|[.]{3}|[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Context = (
    dg.AssetExecutionContext
    | dg.OpExecutionContext
    | dg.AssetCheckExecutionContext
    | dg.SensorEvaluationContext
    | dg.ScheduleEvaluationContext
)
"""The context of a step or a tick."""


@dataclass(frozen=True)
class Naming:
    """Names derived from the prefix of an archive, and the keys that a translator gives its assets.

    Functions that build definitions take these first, then the archive's settings, which also know what the person
    calls each of them.

    Attributes:
        prefix: first part of the asset keys, ``nbia`` unless there is a second archive.
        translator: changes what Dagster is told about the assets, their keys among it.
        conditions: automation conditions by the name of the asset, which the translator may change.
        partitions: the mirrored collections of the archive, in their exact spelling.
    """

    prefix: str = PREFIX
    translator: NbiaTranslator = field(default_factory=NbiaTranslator)
    conditions: Conditions = field(default_factory=dict)
    partitions: dg.DynamicPartitionsDefinition = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "partitions", dg.DynamicPartitionsDefinition(name=self.of("collections")))

    @cached_property
    def specs(self) -> dict[str, dg.AssetSpec]:
        """What Dagster is told about each asset, by the asset's name.

        Raises:
            SettingsError: the translator returns what cannot be used.
        """
        return asset_specs(self.prefix, self.partitions, self.conditions, self.translator)

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of an asset of this archive, given its name."""
        return self.specs[asset].key

    @property
    def renamed(self) -> dict[str, str]:
        """The names of the assets whose keys do not end with them, by these keys."""
        return {spec.key.to_user_string(): name for name, spec in self.specs.items() if spec.key.path[-1] != name}

    def described(self, asset: dg.AssetsDefinition) -> dg.AssetsDefinition:
        """Return an asset of this archive, which has its key already, with all else that its spec says."""
        specs = {spec.key: spec for spec in self.specs.values()}
        return asset.map_asset_specs(lambda own: specs[own.key].replace_attributes(deps=own.deps))

    def of(self, what: str) -> str:
        """Return the name of a job, an op, a sensor or a schedule of this archive."""
        return f"{self.prefix}_{what}"

    @property
    def archive(self) -> str:
        """Key of the archive resource."""
        return self.of("archive")

    @property
    def lake(self) -> str:
        """Key of the lake resource."""
        return self.of("lake")

    @property
    def steps(self) -> str:
        """Key of the IO manager by which the steps of a run hand their results to each other."""
        return self.of("steps")

    @property
    def io(self) -> str:
        """Key of the IO manager by which other assets take tables and images as inputs."""
        return self.of("io")

    @property
    def pool(self) -> str:
        """Pool that limits how many steps call the archive at a time, over all processes."""
        return self.of("api")

    def archive_of(self, context: Context) -> NbiaResource:
        """Return the archive resource of a running step or tick."""
        resource: NbiaResource = getattr(context.resources, self.archive)
        return resource

    def lake_of(self, context: Context) -> LakeResource:
        """Return the lake resource of a running step or tick."""
        resource: LakeResource = getattr(context.resources, self.lake)
        return resource


def with_partition(collections: Iterable[str]) -> list[str]:
    """Return the collections that can be partitions: without control characters and without three dots."""
    found = list(collections)
    for collection in filter(_NO_PARTITION.search, found):
        log.warning("the collection %r is left out: its name cannot be that of a partition in Dagster", collection)
    return [c for c in found if not _NO_PARTITION.search(c)]


def register(
    instance: dg.DagsterInstance, partitions: dg.DynamicPartitionsDefinition, collections: list[str]
) -> list[str]:
    """Add the collections that are not partitions yet, sorted, and return them.

    Partitions of collections that are gone stay: their tables and files do too.
    """
    name = str(partitions.name)
    new = sorted(set(with_partition(collections)) - set(instance.get_dynamic_partitions(name)))
    if new:
        instance.add_dynamic_partitions(name, new)
    return new


def contiguous_ranges(keys: list[str], registered: list[str]) -> list[tuple[str, str]]:
    """Cover `keys` by ranges of neighbors in the order of registration, as single-run backfills need them."""
    stretches = [list(stretch) for wanted, stretch in groupby(registered, set(keys).__contains__) if wanted]
    return [(stretch[0], stretch[-1]) for stretch in stretches]
