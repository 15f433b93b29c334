"""The names that belong to one archive, so that two archives live in one code location."""

from __future__ import annotations

from dataclasses import dataclass, field

import dagster as dg

from nbia_pipeline.defs.partitions import PREFIX, cart_partitions, collection_partitions
from nbia_pipeline.defs.resources import LakeResource, NbiaResource

Context = (
    dg.AssetExecutionContext
    | dg.OpExecutionContext
    | dg.AssetCheckExecutionContext
    | dg.SensorEvaluationContext
    | dg.ScheduleEvaluationContext
)
"""Of a step or a tick."""


@dataclass(frozen=True)
class Naming:
    """Names derived from the prefix of an archive.

    Attributes:
        prefix: first part of the asset keys, ``nbia`` unless a second archive stands beside the first.
        partitions: the collections of the archive.
        carts: the shared carts whose images are wanted.
    """

    prefix: str = PREFIX
    partitions: dg.DynamicPartitionsDefinition = field(init=False)
    carts: dg.DynamicPartitionsDefinition = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "partitions", collection_partitions(self.prefix))
        object.__setattr__(self, "carts", cart_partitions(self.prefix))

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of an asset of this archive."""
        return dg.AssetKey([self.prefix, asset])

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
