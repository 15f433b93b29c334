"""The archive and the lake as Dagster resources: thin, typed, and made only when a step needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dagster as dg
from pydantic import Field

from nbia_pipeline.archive import ArchiveUnreachable, ClientOptions, NbiaClient
from nbia_pipeline.lake import Lake
from nbia_pipeline.settings import EMBEDDED, GUEST, KNOWN_ARCHIVES, Settings

_SECRET: dict[str, Any] = {"dagster__is_secret": True}


class NbiaResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The archive that is mirrored.

    Every process logs in for itself, when it makes its first call. The embedded archive is started where no
    process of this user runs it yet.
    """

    archive: str = Field(default=EMBEDDED, description="embedded, tcia, nlst, or a base URL that ends in /nbia-api.")
    api: str = Field(default="v2", description="v2 (the guide's, with a token) or v4 (no token needed).")
    username: str = Field(default=GUEST, description="Account at the archive.")
    password: str = Field(
        default="", repr=False, json_schema_extra=_SECRET, description="Its password; the guest has none."
    )
    collections: list[str] = Field(default=["*"], description="Names or globs: the collections whose tables are kept.")
    images: list[str] | None = Field(
        default=None,
        description="Names or globs: the collections whose images are mirrored. None: all of the embedded archive, "
        "none of another.",
    )
    ca_bundle: str | None = Field(default=None, description="File of certificates to trust; None: the system's.")
    tries: int = Field(default=ClientOptions.tries, ge=1, description="Calls at the most for one answer.")
    max_in_flight: int = Field(
        default=ClientOptions.max_in_flight,
        ge=1,
        description="Requests at a time to the archive at the most, per process. Over processes: the asset pool.",
    )

    def settings(self) -> Settings:
        """Return the fields as checked settings: they may come from YAML or run config.

        Raises:
            SettingsError: a value is unknown or contradicts another.
        """
        return Settings(
            archive=self.archive,
            api=self.api,
            username=self.username,
            password=self.password,
            collections=tuple(self.collections),
            images=None if self.images is None else tuple(self.images),
            ca_bundle=self.ca_bundle,
        )

    @contextmanager
    def client(self, options: ClientOptions | None = None) -> Iterator[NbiaClient]:
        """Give a client; it logs out at the end.

        Args:
            options: how long to wait and how often to try; None: as the fields say.

        Raises:
            SettingsError: a value is unknown or contradicts another.
        """
        own = ClientOptions(tries=self.tries, max_in_flight=self.max_in_flight)
        with client_of(self.settings(), options or own) as client:
            yield client


class LakeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The lake that tables and images go to."""

    uri: str = Field(description="Directory or URI of the lake, like /data/lake or s3://bucket/lake.")

    def open(self, write: bool = True) -> Lake:
        """Return the lake; if it is to be written, after making sure that it can be.

        Raises:
            LakeError: it cannot.
        """
        lake = Lake(self.uri)
        if write:
            lake.check_writable()
        return lake


def client_of(settings: Settings, options: ClientOptions | None = None) -> NbiaClient:
    """Return a client of the archive that the settings name; the caller closes it.

    Args:
        settings: which archive, and the account.
        options: how long to wait and how often to try.
    """
    return NbiaClient(
        base_url(settings.archive),
        api=settings.api,
        username=settings.username,
        password=settings.password,
        ca_bundle=settings.ca_bundle,
        options=options,
    )


def base_url(archive: str) -> str:
    """Return the base URL of an archive by its name; starts the embedded one if it does not run."""
    if archive == EMBEDDED:
        from nbia_pipeline.embedded.launcher import EmbeddedArchiveError, ensure_running

        try:
            return ensure_running()
        except EmbeddedArchiveError as e:
            raise ArchiveUnreachable(str(e)) from e
    return KNOWN_ARCHIVES.get(archive, archive)
