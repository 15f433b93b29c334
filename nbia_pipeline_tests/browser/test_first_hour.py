"""From an empty folder to the first picture, by clicks alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nbia_pipeline.lake import Lake
from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline_tests.browser.conftest import Visit
from nbia_pipeline_tests.browser.person import Person
from nbia_pipeline_tests.helpers.dev_ui import serving_ui
from nbia_pipeline_tests.helpers.ticker import KNOWN

pytestmark = pytest.mark.slow

MOST_CLICKS = 5


def see_contact_sheet(person: Person) -> None:
    """Click the contact sheet of the page, and expect that the browser shows the picture."""
    person.click(person.tab.get_by_text("[Show Markdown]").first)
    image = person.tab.locator("img[src^='data:image/']")
    image.wait_for()
    assert int(image.evaluate("image => image.naturalWidth")) > 100


def test_first_click_to_first_image(visit: Visit, tmp_path: Path, tell: Callable[[str], None]) -> None:
    began = time.monotonic()
    with serving_ui(tmp_path, NBIA_HEADERS="*") as ui:
        ui.wait_until_loaded()
        loaded = time.monotonic()
        person = visit(ui, tmp_path)
        person.open()
        person.click(person.link("Jobs"))
        person.click(person.link("nbia_mirror"))
        person.click(person.link("Launchpad"))
        person.click(person.button("Launch Run"))
        person.ends("Success")
        mirrored = time.monotonic()
        person.picture("mirror-run.png")

        see_contact_sheet(person)
        seen = time.monotonic()
        clicks = person.clicks

        person.open(f"/assets/nbia/images?view=partitions&partition={KNOWN[-1]}")
        person.sees("Latest materialization")
        see_contact_sheet(person)
        person.picture("images-asset.png")

        person.open("/assets/nbia/references?view=partitions&partition=HeadNeckMix")
        person.sees("moved")
        person.sees("first_orphans").evaluate("name => name.scrollIntoView({block: 'center'})")
        person.picture("references-asset.png", width=2000)

    lake = Lake(str(tmp_path / "a lake"))
    statuses = {c: lake.read_table(IMAGE_SERIES, c)["Status"].to_pylist() for c in KNOWN}
    assert statuses == {c: ["complete"] * n for c, n in zip(KNOWN, (21, 4, 5, 9), strict=True)}
    tell(
        f"nbia-pipeline dev to the first picture: {clicks} clicks, {seen - began:.0f} s; the UI was loaded after "
        f"{loaded - began:.0f} s, everything was mirrored after {mirrored - began:.0f} s"
    )
    assert clicks <= MOST_CLICKS
