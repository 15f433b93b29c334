"""Commands in processes of their own."""

from __future__ import annotations

import os
from pathlib import Path


def environment(folder: Path, **variables: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("NBIA_") and k != "DAGSTER_HOME"}
    return {**inherited, "DAGSTER_HOME": str(folder / "home"), "NBIA_LAKE": str(folder / "a lake"), **variables}
