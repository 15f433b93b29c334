"""The archive as a Dagster component, for those who describe their project in YAML."""

import os
import re
from typing import Annotated, Any

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import Field

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.naming import PREFIX, Naming
from nbia_pipeline.defs.specs.translator import NbiaAssetData, NbiaTranslator
from nbia_pipeline.settings import Pipeline, Settings, SettingsError, field_of, values_of

Translation = Annotated[
    TranslationFn[NbiaAssetData],
    TranslationFnResolver[NbiaAssetData](lambda data: {"asset": data.name, "archive": data.archive}),
]
"""A field of YAML with attributes of assets, in which ``asset``, ``archive`` and ``spec`` are those of each asset."""


class NbiaComponent(Pipeline, NbiaTranslator, dg.Component, dg.Model, dg.Resolvable):
    """Mirrors an NBIA archive (The Cancer Imaging Archive) into a data lake.

    The fields are those of the NBIA_* variables. Only the password is given as the name of the environment variable
    that holds it, because a value in YAML would be shown in the UI.

    .. code-block:: yaml

        type: nbia_pipeline.NbiaComponent
        attributes:
          archive: tcia
          lake: s3://bucket/lake
          collections: ["TCGA-*"]
          images: ["TCGA-LUAD"]
          translation:
            key: "imaging/{{ asset }}"
            owners: ["team:imaging"]

    A subclass can change the assets in Python instead: it overrides ``get_asset_spec``, as a subclass of
    ``NbiaTranslator`` does.
    """

    password_env: str | None = Field(default=None, description="Name of the variable that holds the password.")
    prefix: str = Field(default=PREFIX, description="First part of the asset keys; another one for a second archive.")

    translation: Translation | None = Field(
        default=None,
        description="Attributes of the assets: key, key_prefix, group_name, owners, tags, kinds, description, metadata, "
        "automation_condition. In a value, {{ asset }} is the name of the asset, such as series, {{ archive }} the "
        "prefix, and {{ spec }} the asset as it is without this field.",
    )

    def __init__(self, **given: Any) -> None:
        with values_of(type(self)):
            super().__init__(**given)

    def get_asset_spec(self, data: NbiaAssetData) -> dg.AssetSpec:
        """Return the spec of an asset: as the field ``translation`` has it, where there is one."""
        return self.translation(data.spec, data) if self.translation else data.spec

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions of the archive.

        Raises:
            SettingsError: a value is unknown or contradicts another; the text names its field.
        """
        if not re.fullmatch("[A-Za-z0-9_]+", self.prefix):
            raise SettingsError(f"prefix is {self.prefix!r}: set it to letters, digits and underscores")
        password = os.environ.get(self.password_env, "") if self.password_env else ""
        if self.password_env and not password:
            raise SettingsError(f"password_env names {self.password_env}, which is not set: set it to the password")
        shared = {name: getattr(self, name) for name in Pipeline.model_fields}
        settings = Settings(_field_of, password=password, **shared)
        return build_definitions(settings, Naming(self.prefix), self.password_env, translator=self)


NbiaArchiveComponent = NbiaComponent
"""The name in version 0.1.0, for YAML that was written then."""


def _field_of(argument: str) -> str:
    """Return the field of the component that an argument of the library comes from."""
    return "password_env" if argument == "password" else field_of(argument)
