"""Readers of Parquet that not every environment has."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

POLARS = importlib.util.find_spec("polars") is not None
polars: Any = importlib.import_module("polars") if POLARS else None
