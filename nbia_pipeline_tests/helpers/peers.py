"""What other people's clients were asked, and what they answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from nbia_pipeline.embedded.control.traffic import Exchange

SINCE = date(2016, 3, 21)
EVER = date(1900, 1, 1)


@dataclass
class Asked:
    """What a peer said.

    Attributes:
        answers: by the name of the question.
        folder: where it put its files.
        seen: what it asked over the wire.
        questions: what it was asked for.
    """

    answers: dict[str, Any]
    folder: Path
    seen: list[Exchange]
    questions: dict[str, Any]


Ask = Callable[[str, list[str]], Asked]
