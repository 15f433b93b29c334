"""The state of a running archive: holdings, tokens, settings, traffic."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from nbia_pipeline.embedded.api.endpoint import Settings
from nbia_pipeline.embedded.catalog.holdings import Holdings
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.control.traffic import Traffic
from nbia_pipeline.embedded.server.cache import AnswerCache
from nbia_pipeline.embedded.server.tokens import TokenStore


@dataclass
class Archive:
    """The parts of a running embedded archive; `control` has the operations that change it while it runs."""

    holdings: Holdings
    tokens: TokenStore
    settings: Settings
    traffic: Traffic
    cache: AnswerCache = field(init=False)
    control: Operations = field(init=False)

    def __post_init__(self) -> None:
        self.cache = AnswerCache(self.settings.scratch)
        self.control = Operations(self.holdings, self.tokens, self.settings, self.traffic, self.forget)

    def forget(self, collections: Iterable[str] | None = None) -> None:
        """Forget the answers about some collections; None removes everything that is kept on disk."""
        if collections is None:
            self.cache.clear()
            self.settings.scratch.clear()
        else:
            self.cache.forget(collections)
