"""The archive as a Dagster component, for those who describe their project in YAML."""

import os

import dagster as dg
from pydantic import Field

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.defs.partitions import PREFIX
from nbia_pipeline.settings import (
    CATALOGUE_CRON,
    EMBEDDED,
    GUEST,
    POLL_SECONDS,
    RECONCILE_CRON,
    Settings,
    SettingsError,
)


class NbiaComponent(dg.Component, dg.Model, dg.Resolvable):
    """Mirrors an NBIA archive (The Cancer Imaging Archive) into a data lake.

    The fields are those of the NBIA_* variables. The password is given by the name of the environment variable
    that holds it: a value in YAML would be shown in the UI.
    """

    archive: str = Field(default=EMBEDDED, description="embedded, tcia, nlst, or a base URL that ends in /nbia-api.")
    api: str = Field(default="v2", description="v2 (the guide's, with a token) or v4 (no token needed).")
    username: str = Field(default=GUEST, description="Account at the archive.")
    password_env: str | None = Field(default=None, description="Name of the variable that holds its password.")
    lake: str = Field(default="./lake", description="Directory or URI of the lake.")
    collections: list[str] = Field(default=["*"], description="Names or globs: the collections whose tables are kept.")
    images: list[str] | None = Field(
        default=None, description="Names or globs: the collections whose images are mirrored."
    )
    ca_bundle: str | None = Field(default=None, description="File of certificates to trust; None: the system's.")
    poll_seconds: int = Field(default=POLL_SECONDS, description="Seconds between two ticks of a sensor.")
    catalogue_cron: str = Field(default=CATALOGUE_CRON, description="When the catalogue is listed (UTC).")
    reconcile_cron: str = Field(default=RECONCILE_CRON, description="When every kept collection is listed whole (UTC).")
    prefix: str = Field(default=PREFIX, description="First part of the asset keys; another one for a second archive.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions of the archive; a wrong field is a SettingsError that names its variable."""
        if self.password_env and not os.environ.get(self.password_env):
            raise SettingsError(f"password_env names {self.password_env}, which is not set: set it to the password")
        settings = Settings(
            archive=self.archive,
            api=self.api,
            username=self.username,
            password=os.environ.get(self.password_env, "") if self.password_env else "",
            lake=self.lake,
            collections=tuple(self.collections),
            images=None if self.images is None else tuple(self.images),
            ca_bundle=self.ca_bundle,
            poll_seconds=self.poll_seconds,
            catalogue_cron=self.catalogue_cron,
            reconcile_cron=self.reconcile_cron,
        )
        return build_definitions(settings, Naming(self.prefix), self.password_env)
