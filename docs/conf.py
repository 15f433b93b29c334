"""The documentation site: ``make docs``. Its pages are Markdown that reads as well without it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nbia_pipeline import __version__

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = re.findall(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[0]

project = "nbia-pipeline"
author = copyright = "The nbia-pipeline authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"nbia-pipeline {release}"
html_copy_source = False
html_theme_options = {"source_repository": REPOSITORY, "source_branch": "main", "source_directory": "docs/"}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"


def link_to_repository(app: Any, name: str, text: list[str]) -> None:
    """Let relative links out of docs/, which work in a clone, lead to the repository."""
    text[0] = re.sub(r"\]\(\.\./([^)]*)\)", rf"]({REPOSITORY}/blob/main/\1)", text[0])


def setup(app: Any) -> None:
    """Add the function above to Sphinx."""
    app.connect("source-read", link_to_repository)
