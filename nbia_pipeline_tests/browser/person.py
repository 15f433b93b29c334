"""Somebody with a browser: opens pages of the UI, clicks, reads, and takes the pictures of the documentation."""

from __future__ import annotations

import io
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from nbia_pipeline_tests.helpers.dev_ui import PATIENCE_SECONDS

if TYPE_CHECKING:
    from playwright.sync_api import Locator
    from playwright.sync_api import Page as Tab

WIDTH, HEIGHT = 1400, 900
MOST_BYTES = 150_000
SETTLED_MS = 1000
LAKE_IN_PICTURES = "/data"

# Replaces a folder in all texts of a page, which say where the lake of a test is.
RENAME = """([folder, other]) => {
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) texts.currentNode.data = texts.currentNode.data.replaceAll(folder, other);
}"""


@dataclass
class Person:
    """Somebody who has one tab open.

    Attributes:
        tab: Playwright's page.
        base: address of the UI.
        folder: where the UI was started, which pictures do not show.
        pictures: where to write pictures; None: nowhere.
        clicks: how many clicks it took so far.
        began: when the first page was opened, as ``time.monotonic`` has it.
    """

    tab: Tab
    base: str
    folder: Path
    pictures: Path | None
    clicks: int = 0
    began: float = field(default_factory=time.monotonic)

    def open(self, path: str = "/") -> None:
        """Open a page by its address, as a bookmark does."""
        self.tab.goto(self.base + path)

    def click(self, what: Locator) -> None:
        """Click with the mouse, and count it."""
        what.click()
        self.clicks += 1

    def link(self, name: str) -> Locator:
        """Return the link of that text; its accessible name would have its icon's, too."""
        return self.tab.locator("a", has_text=re.compile(f"^{re.escape(name)}$")).first

    def button(self, text: str) -> Locator:
        """Return the button of that text."""
        return self.tab.locator("button", has_text=re.compile(f"^{re.escape(text)}$")).first

    def switch(self) -> Locator:
        """Return the switch of the page of a sensor."""
        return self.tab.locator("label[class*=formatSwitch]").first

    def ticks(self, result: str) -> Locator:
        """Wait for a tick of that result on the page of a sensor, and return the link to what it said."""
        found = self.tab.locator("td a, td button", has_text=re.compile(f"^{result}$")).last
        found.wait_for(timeout=PATIENCE_SECONDS * 1000)
        return found

    def sees(self, text: str | re.Pattern[str], seconds: float = PATIENCE_SECONDS) -> Locator:
        """Wait until a text is on the page."""
        found = self.tab.get_by_text(text, exact=True).first
        found.wait_for(timeout=seconds * 1000)
        return found

    def counts(self, text: str, number: int) -> None:
        """Wait until a text is on the page so many times."""
        self.tab.get_by_text(text, exact=True).nth(number - 1).wait_for(timeout=PATIENCE_SECONDS * 1000)

    def ends(self, status: str) -> None:
        """Wait until the page of a run says how it ended, and expect that word."""
        shown = self.sees(re.compile("^(Success|Failure|Canceled)$"))
        assert shown.text_content() == status

    def picture(self, name: str, height: int = HEIGHT, width: int = WIDTH) -> None:
        """Take a picture of the upper part of the page, and write it if pictures are asked for."""
        self.tab.mouse.move(0, 0)
        self.tab.wait_for_timeout(SETTLED_MS)
        self.tab.evaluate(RENAME, [str(self.folder), LAKE_IN_PICTURES])
        self.tab.set_viewport_size({"width": width, "height": height})
        self.tab.wait_for_timeout(SETTLED_MS)
        shot = Image.open(io.BytesIO(self.tab.screenshot())).convert("RGB")
        self.tab.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        png = io.BytesIO()
        shot.quantize(256, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
        assert len(png.getvalue()) <= MOST_BYTES, name
        if self.pictures:
            (self.pictures / name).write_bytes(png.getvalue())
