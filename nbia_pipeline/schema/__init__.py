"""The schema: what the lake's tables contain and how the archive writes it."""

from nbia_pipeline.schema import headers, tables
from nbia_pipeline.schema.shapes import Form, Key, Shape, normalize
from nbia_pipeline.schema.tables import Column, Table

__all__ = ["GUEST", "TABLES", "Column", "Form", "Key", "Shape", "Table", "normalize"]

TABLES = {**tables.TABLES, **headers.TABLES}
"""Every table of the lake by its name."""

GUEST = "nbia_guest"
"""User name of the guest of every archive, who sees what is public and needs no password."""
