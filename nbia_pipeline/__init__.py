"""Mirror a medical-image archive (NBIA) into a data lake with Dagster."""

from nbia_pipeline._version import __version__

__all__ = ["__version__"]
