"""TCIA and the National Lung Screening Trial, each with its own names, lake, account and limits."""

import os

import dagster as dg

from nbia_pipeline.definitions import build_definitions
from nbia_pipeline.defs.naming import Naming
from nbia_pipeline.settings import Settings

# One object: Dagster takes one executor for a code location.
EXECUTOR = dg.multiprocess_executor.configured({"max_concurrent": 2}, name="multiprocess")


def archive(name: str, **settings: object) -> dg.Definitions:
    """Return the definitions of an archive, whose address, lake and account are variables like TCIA_LAKE."""

    def variable(what: str, default: str = "") -> str:
        return os.environ.get(f"{name.upper()}_{what}", default)

    given = Settings(
        archive=variable("ARCHIVE", name),
        lake=variable("LAKE", f"lakes/{name}"),
        username=variable("USERNAME", "nbia_guest"),
        password=variable("PASSWORD"),
        **settings,
    )
    return build_definitions(given, Naming(name), f"{name.upper()}_PASSWORD", executor=EXECUTOR)


@dg.definitions
def defs() -> dg.Definitions:
    """Return the definitions of both archives."""
    return dg.Definitions.merge(
        archive("tcia", collections=["TCGA-*"], images=["TCGA-*"]),
        archive("nlst", collections=["*"], images=["*"]),
    )
