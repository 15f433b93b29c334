"""Mirror a medical-image archive (NBIA) into a data lake with Dagster.

Each name is imported when it is first used, so that a program that needs only the client does not wait for Dagster.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nbia_pipeline._version import __version__

if TYPE_CHECKING:
    from nbia_pipeline.archive import NbiaClient as NbiaClient
    from nbia_pipeline.component import NbiaComponent as NbiaComponent
    from nbia_pipeline.definitions import build_definitions as build_definitions
    from nbia_pipeline.defs.assets.inputs import NbiaIOManager as NbiaIOManager
    from nbia_pipeline.defs.resources import LakeResource as LakeResource
    from nbia_pipeline.defs.resources import NbiaResource as NbiaResource
    from nbia_pipeline.defs.specs.translator import NbiaTranslator as NbiaTranslator
    from nbia_pipeline.mirror.engine import Mirror as Mirror
    from nbia_pipeline.reading.images import Images as Images
    from nbia_pipeline.reading.lake import Lake as Lake
    from nbia_pipeline.reading.volume import Volume as Volume

_MODULES = {
    "Images": "reading.images",
    "Lake": "reading.lake",
    "LakeResource": "defs.resources",
    "Mirror": "mirror.engine",
    "NbiaClient": "archive",
    "NbiaComponent": "component",
    "NbiaIOManager": "defs.assets.inputs",
    "NbiaResource": "defs.resources",
    "NbiaTranslator": "defs.specs.translator",
    "Volume": "reading.volume",
    "build_definitions": "definitions",
}

__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
