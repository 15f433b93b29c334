"""Runs without Dagster: the functions that the assets of a job call, in the order of the assets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nbia_pipeline.archive import ArchiveError, NbiaClient
from nbia_pipeline.changes.catalog import describe
from nbia_pipeline.changes.listing import Fetched
from nbia_pipeline.changes.metadata import metadata_of
from nbia_pipeline.changes.present import returned_collections, vanished_collections
from nbia_pipeline.defs.assets import changes, tables
from nbia_pipeline.defs.assets.changes import ChangesConfig
from nbia_pipeline.defs.resources import NbiaResource
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.mirror.plan import Bounds
from nbia_pipeline.schema.tables import COLLECTIONS, SERIES, SERIES_METADATA
from nbia_pipeline.settings import Settings, SettingsError

RUN = "plain"
"""What the feed says of a run that Dagster knows nothing of."""


class PlainRuns:
    """Runs of the jobs of one code location. The tables of patients and studies, the value lists and the checks are
    left to the real runs: nothing depends on them."""

    def __init__(
        self, settings: Settings, partitions: Callable[[], list[str]], register: Callable[[Sequence[str]], None]
    ) -> None:
        self._settings = settings
        self._partitions = partitions
        self._register = register
        self._lake = Lake(settings.lake)
        fields = ("archive", "api", "username", "password", "ca_bundle")
        self._archive = NbiaResource(**{name: getattr(settings, name) for name in fields})
        self._jobs: dict[str, list[Callable[..., None]]] = {
            "nbia_catalogue": [self._catalogue],
            "nbia_tables": self._tables(),
            "nbia_images": [self._images],
            "nbia_update": [*self._tables(), self._images],
        }

    def run(self, job: str, collections: list[str], config: dict[str, Any]) -> bool:
        """Run a job over collections; return whether all of it succeeded."""
        bounds = config.get("ops", {}).get("nbia__images", {})
        with self._archive.client() as client:
            for asset in self._jobs[job]:
                done = [self._try(asset, client, c, bounds.get("config", {})) for c in collections or [""]]
                if not all(done):
                    return False  # what depends on it is not run
        return True

    def _try(self, asset: Callable[..., None], client: NbiaClient, collection: str, bounds: dict[str, Any]) -> bool:
        try:
            asset(client, collection, **(bounds if asset == self._images else {}))
        except (ArchiveError, LakeError, SettingsError):
            return False
        return True

    def _tables(self) -> list[Callable[..., None]]:
        return [self._series, self._changes, self._metadata]

    def _catalogue(self, client: NbiaClient, _: str) -> None:
        tables._write(
            COLLECTIONS,
            client,
            self._lake,
            lambda: describe(client, self._settings, before=self._lake.read_table(COLLECTIONS)),
        )
        for collection in [*vanished_collections(self._lake), *returned_collections(self._lake)]:
            self._changes(client, collection)
        listed = self._lake.read_table(COLLECTIONS, columns=["Collection"])["Collection"].to_pylist()
        self._register(sorted(set(listed) - set(self._partitions())))

    def _series(self, client: NbiaClient, collection: str) -> None:
        tables._write(SERIES, client, self._lake, lambda: Fetched(client.series(collection)), collection)

    def _changes(self, client: NbiaClient, collection: str) -> None:
        changes.record_collection(self._lake, collection, RUN, ChangesConfig())

    def _metadata(self, client: NbiaClient, collection: str) -> None:
        def fetch() -> Fetched:
            return metadata_of(client, self._lake, collection)

        tables._write(SERIES_METADATA, client, self._lake, fetch, collection)

    def _images(self, client: NbiaClient, collection: str, **bounds: Any) -> None:
        mirror = Mirror(client, self._lake)
        plan = mirror.plan(collection, bounds=Bounds(**bounds))
        try:
            mirror.fetch(plan.todo)
        finally:
            mirror.commit(collection)
