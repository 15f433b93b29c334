"""The archive and the lake as Dagster resources: thin, typed, and opened only when a step needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg
from pydantic import Field

from nbia_pipeline.archive import ClientOptions, NbiaClient
from nbia_pipeline.connect import connect
from nbia_pipeline.lake import Lake
from nbia_pipeline.settings import GUEST, PASSWORD, Connection, Settings


class NbiaResource(Connection, dg.ConfigurableResource):  # type: ignore[type-arg]
    """Connection to an NBIA archive.

    Every process logs in by itself, when it makes its first call. The embedded archive is started unless a process of
    this user runs it already.

    Example:

    .. code-block:: python

        import dagster as dg
        from nbia_pipeline import NbiaResource

        @dg.asset
        def body_parts(nbia: NbiaResource) -> list[str]:
            with nbia.client() as client:
                return client.body_part_values()["BodyPartExamined"].to_pylist()

        defs = dg.Definitions(
            assets=[body_parts],
            resources={
                "nbia": NbiaResource(archive="tcia", username="me", password=dg.EnvVar("NBIA_PASSWORD"))
            },
        )
    """

    password: str = PASSWORD
    tries: int = Field(default=ClientOptions.tries, ge=1, description="Most attempts at one call, the first included.")

    @contextmanager
    def client(self, options: ClientOptions | None = None, *, guest: bool = False) -> Iterator[NbiaClient]:
        """Open a client; it logs out at the end.

        Args:
            options: how long to wait and how often to try; None: as the fields say.
            guest: connect as the guest, whatever the account.

        Raises:
            SettingsError: a value is unknown or contradicts another: the fields may come from YAML or run config.
        """
        fields = {name: getattr(self, name) for name in (*Connection.model_fields, "password")}
        settings = Settings(**{**fields, **({"username": GUEST, "password": ""} if guest else {})})
        with connect(settings, options or ClientOptions(tries=self.tries)) as client:
            yield client


class LakeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The lake that tables and images are written to.

    Example:

    .. code-block:: python

        LakeResource(uri="s3://bucket/lake")
    """

    uri: str = Field(description="Directory or URI of the lake, like /data/lake or s3://bucket/lake.")
    fsync: bool = Field(default=True, description="Whether what is finished survives a loss of power; see Lake.")

    def open(self, write: bool = True) -> Lake:
        """Return the lake; if it is to be written, after making sure that it can be.

        Raises:
            LakeError: it cannot be.
        """
        lake = Lake(self.uri, fsync=self.fsync)
        if write:
            lake.check_writable()
        return lake
