"""What an operator does by clicks: materializes, reads a failing check, terminates a run, turns on a sensor."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nbia_pipeline.schema.tables import IMAGE_SERIES
from nbia_pipeline_tests.browser.conftest import Site
from nbia_pipeline_tests.browser.person import Person
from nbia_pipeline_tests.helpers.damage import flipped
from nbia_pipeline_tests.helpers.dev_ui import wait_until
from nbia_pipeline_tests.helpers.faults import Fault

pytestmark = pytest.mark.slow

DAMAGED, STALLED, UPDATED, NEW = "HeadNeckMix", "QIN_Breast.v2", "TCGA-DEMO", "A Brand New Collection"
ZIPS = "getImageWithMD5Hash"


def statuses(site: Site, collection: str) -> list[str]:
    found: list[str] = site.lake.read_table(IMAGE_SERIES, collection)["Status"].to_pylist()
    return found


def mirror(person: Person) -> None:
    """Launch the job that mirrors everything; the page of its run opens."""
    person.open()
    person.click(person.link("Jobs"))
    person.click(person.link("nbia_mirror"))
    person.click(person.link("Launchpad"))
    person.click(person.button("Launch Run"))
    person.tab.wait_for_url("**/runs/*")


def test_materialize_all_in_the_lineage(person: Person) -> None:
    person.open()
    person.click(person.link("Lineage"))
    person.button("Materialize all…").wait_for()
    person.tab.keyboard.press("Alt+KeyE")  # expands all groups
    person.sees("series_changes")
    person.picture("asset-graph.png")
    person.click(person.button("Materialize all…"))
    person.click(person.button("All"))
    person.click(person.button("Preview"))
    person.sees("Partitions to launch")
    person.counts("4 partitions", 3)  # at least: the dialog, and assets with that many to launch
    person.click(person.button("OK"))
    person.click(person.button("Launch backfill"))
    person.click(person.link("View"))  # of the message that a backfill was created, which goes by itself
    person.counts("100% completed", 12)
    person.counts("Succeeded", 6)  # the backfill, the four assets without partitions, the heading of a column


def test_a_damaged_file_is_a_failing_check(site: Site, person: Person) -> None:
    file = min((Path(site.lake.uri) / "images" / DAMAGED).rglob("*.dcm"))
    content = file.read_bytes()
    file.write_bytes(flipped(content))
    try:
        person.open(f"/assets/nbia/images?view=partitions&partition={DAMAGED}")
        person.sees("Latest materialization")
        person.click(person.button("Materialize…"))
        person.click(person.button("Launch 1 run"))
        person.click(person.link("View"))
        person.ends("Success")
        person.open("/assets/nbia/images?view=checks")
        person.click(person.sees("intact"))
        person.sees("Failed")
        person.click(person.tab.locator("a, [role=tab]", has_text=re.compile("^Partitions$")).last)
        person.sees("Failed (1)")
        person.click(person.tab.get_by_text(DAMAGED, exact=True).locator("visible=true").last)
        person.sees(re.compile("is damaged, of .* files: changed"), 20)
        person.picture("check-failed.png", 620, 2000)
    finally:
        file.write_bytes(content)


def test_a_terminated_run_and_the_next_one(site: Site, person: Person) -> None:
    before = statuses(site, STALLED).count("complete")
    for _ in range(2):
        site.control.add_series(STALLED)
    site.faults.inject(ZIPS, Fault("stall", fraction=0.5), times=20)
    mirror(person)
    wait_until(lambda: site.faults.count(ZIPS) > 0)
    person.click(person.button("Terminate"))
    person.click(person.button("Terminate 1 run"))
    person.ends("Canceled")

    site.faults.reset()
    mirror(person)
    person.ends("Success")
    assert statuses(site, STALLED) == ["complete"] * (before + 2)
    assert site.faults.count(ZIPS) == 2


def test_a_sensor_turned_on(site: Site, person: Person) -> None:
    person.open()
    person.click(person.link("Automation"))
    person.click(person.link("nbia_updated_series"))
    person.click(person.switch())
    try:
        person.click(person.ticks("0 runs requested"))
        person.sees(re.compile("Started: "))
        person.click(person.button("Close"))

        released = site.control.add_series(UPDATED)
        site.control.add_series(NEW)
        person.click(person.ticks("3 runs requested"))
        person.sees(re.compile(re.escape(released)))
        person.picture("sensor-ticks.png")
        person.open("/runs?q[0]=tag:dagster/sensor_name=nbia_updated_series")
        person.counts("Success", 3)
        person.picture("sensor-runs.png", 560)
        person.open(f"/assets/nbia/series?view=partitions&partition={NEW}")
        person.sees("Latest materialization")
        person.picture("new-partition.png", 470)
        person.open("/automation")
        person.sees("nbia_updated_series")
        person.picture("automation.png", 430)
    finally:
        person.open("/locations/nbia_pipeline/sensors/nbia_updated_series")
        person.click(person.switch())
    assert statuses(site, NEW) == ["complete"]
    assert set(statuses(site, UPDATED)) == {"complete"}
