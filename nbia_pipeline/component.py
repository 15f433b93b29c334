"""The archive as a Dagster component, for those who describe their project in YAML."""

import json
import os
import re
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

import dagster as dg
from dagster.components.component_scaffolding import scaffold_component
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import BaseModel, Field

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.naming import PREFIX, Naming
from nbia_pipeline.defs.specs.translator import NbiaAssetData, NbiaTranslator
from nbia_pipeline.settings import Pipeline, Settings, SettingsError, field_of, values_of

Translation = Annotated[
    TranslationFn[NbiaAssetData],
    TranslationFnResolver[NbiaAssetData](lambda data: {"asset": data.name, "archive": data.archive}),
]
"""A field of YAML with attributes of assets, in which ``asset``, ``archive`` and ``spec`` are those of each asset."""

EXAMPLES = {
    "bwlimit": "50MB",
    "ca_bundle": "/etc/ssl/private-archive.pem",
    "images": ["TCGA-LUAD"],
    "headers": ["TCGA-LUAD"],
    "select": {"TCGA-LUAD": {"modalities": ["CT", "SEG"]}},
    "executor": {"multiprocess": {"max_concurrent": 4}},
    "password_env": "NBIA_PASSWORD",
    "translation": {"owners": ["team:imaging"], "tags": {"domain": "radiology"}},
}
"""Values for the fields that have none by default, in the YAML that is scaffolded."""

HEADER = """\
# An NBIA archive, mirrored into a data lake. A line that is commented out shows the default of its field, or an example
# where nothing is the default.
"""
ENVIRONMENT = """\

# Variables that this component needs, for `dg list env`:
# requirements:
#   env:
#     - NBIA_PASSWORD
"""


class ScaffoldParams(BaseModel):
    """What `dg scaffold defs` can be told."""

    archive: str | None = Field(default=None, description=Pipeline.model_fields["archive"].description)
    lake: str | None = Field(default=None, description=Pipeline.model_fields["lake"].description)
    prefix: str | None = Field(default=None, description="First part of the asset keys.")


class NbiaScaffolder(dg.Scaffolder[ScaffoldParams]):
    """Writes the YAML of a component with all its fields: those that are not given are comments."""

    @classmethod
    def get_scaffold_params(cls) -> type[ScaffoldParams]:
        """Return the model of the options."""
        return ScaffoldParams

    def scaffold(self, request: dg.ScaffoldRequest[ScaffoldParams]) -> None:
        """Write ``defs.yaml``, or ``component.py`` where Python is asked for."""
        if request.scaffold_format == "python":
            scaffold_component(request)
            return
        text = commented_yaml(request.type_name, request.params.model_dump(exclude_none=True))
        if request.append:
            with request.target_path.open("a", encoding="utf-8") as file:
                file.write(f"---\n{text}")
        else:
            (request.target_path / "defs.yaml").write_text(text, encoding="utf-8")


def commented_yaml(type_name: str, given: dict[str, Any]) -> str:
    """Return the YAML of a component with its fields explained; archive and lake are set, and what is given."""
    fields = NbiaComponent.model_fields
    values = {name: field.default for name, field in fields.items()} | EXAMPLES
    lines = [HEADER, f"type: {type_name}\n", "\nattributes:\n"]
    for name, field in fields.items():
        is_set = name in given or name in ("archive", "lake")
        explained = textwrap.wrap(field.description or "", 116, break_on_hyphens=False)  # whole names of files
        lines += (f"  # {line}\n" for line in explained)
        lines += (f"  {'' if is_set else '# '}{line}\n" for line in _yaml(name, given.get(name, values[name])))
        lines.append("\n")
    return "".join(lines).rstrip("\n") + "\n" + ENVIRONMENT


def _yaml(name: str, value: Any) -> Iterator[str]:
    """Yield the lines of a field; a mapping takes one for each of its entries."""
    if isinstance(value, dict):
        yield f"{name}:"
        for key, inner in value.items():
            yield from (f"  {line}" for line in _yaml(key, inner))
    else:
        # JSON is YAML; words need no quotes.
        plain = isinstance(value, str) and re.fullmatch(r"[\w./:-]+", value) and value not in ("on", "off", "yes", "no")
        yield f"{name}: {value if plain else json.dumps(value)}"


@dg.scaffold_with(NbiaScaffolder)
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
        description="Attributes of the assets: key, key_prefix, group_name, owners, tags, kinds, description, "
        "metadata, automation_condition. In a value, {{ asset }} is the name of the asset, such as series, "
        "{{ archive }} the prefix, and {{ spec }} the asset as it is without this field.",
    )

    def __init__(self, **given: Any) -> None:
        with values_of(type(self)):
            super().__init__(**given)

    @classmethod
    def model(cls) -> type[BaseModel]:
        """Return the model of the YAML, with descriptions: Dagster drops those of fields that have a default."""
        model: type[BaseModel] = super().model()
        if model.model_fields["lake"].description is None:
            for name, field in model.model_fields.items():
                field.description = cls.model_fields[name].description
            model.model_rebuild(force=True)
        return model

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
