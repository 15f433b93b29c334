"""An archive in which things go wrong, and a lake that must come out right."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.embedded.server.archive import Archive
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline_tests.helpers import truth
from nbia_pipeline_tests.helpers.archives import FAST, serving
from nbia_pipeline_tests.helpers.faults import Faults
from nbia_pipeline_tests.helpers.mirror_once import mirror
from nbia_pipeline_tests.helpers.places import Place

BREAST = "QIN_Breast.v2"
DOWNLOADS = ("getImageWithMD5Hash", "getImage", "getSingleImage")


@dataclass
class MirroredArchive:
    """An archive in which things go wrong, and one lake that mirrors a collection of it.

    Attributes:
        url: base URL.
        archive: the archive.
        around: the same archive in the words of tests: faults of the next calls, and every request.
        folder: the lake.
        collections: what is mirrored.
        options: how long the client waits.
        proofs: ``Proof`` of the series where it is not ``md5``.
        api: ``v2`` or ``v4``.
        calm: what a lake of these collections holds if nothing disturbs it, while the archive is as it was.
    """

    url: str
    archive: Archive
    around: Faults
    folder: Place
    collections: tuple[str, ...] = (BREAST,)
    options: Any = FAST
    proofs: dict[str, str] = field(default_factory=dict)
    api: str = "v2"
    calm: dict[tuple[str, ...], truth.Contents] = field(default_factory=dict)

    @property
    def control(self) -> Operations:
        """What can be done to the archive."""
        return self.archive.control

    @property
    def lake(self) -> Lake:
        """The lake, opened anew."""
        return Lake(str(self.folder))

    def wrong(self, *faults: Fault, seed: int = 0) -> None:
        """Set what goes wrong from now on."""
        self.control.faults(*faults, seed=seed)

    def state_no_counts(self, *uids: str) -> None:
        """State no ImageCount of some series, or of all: a zip alone proves nothing then, and the list is asked for."""
        self.control.edit(uids or list(truth.facts_of(self.archive, self.collections)), ImageCount=None)

    def client(self) -> NbiaClient:
        """Return a client; the caller closes it."""
        return NbiaClient(self.url, api=self.api, options=self.options)

    def run(self, **options: Any) -> list[Receipt]:
        """Mirror once; nothing that was finished before may be asked for again.

        Raises:
            ArchiveError: the run failed.
            LakeError: likewise.
        """
        before = truth.finished(self.folder, self.archive, self.collections)
        seen = len(self.around.seen)
        try:
            with self.client() as client:
                return mirror(client, self.lake, self.collections, **options)
        finally:
            again = {r.query["SeriesInstanceUID"] for r in self.around.seen[seen:] if r.endpoint in DOWNLOADS}
            assert not again & before, "what was complete is fetched again"

    def run_until_whole(self, failures: tuple[type[Exception], ...], most: int) -> int:
        """Mirror again and again until all is there; return how many runs it took."""
        for number in range(1, most + 1):
            with contextlib.suppress(*failures):
                if all(r.status == "complete" for r in self.run()):
                    return number
            self.expect_nothing_wrong()
        raise AssertionError(f"not whole after {most} runs")

    def uid(self, slices: int = 14) -> str:
        """Return the UID of a series with so many images."""
        facts = truth.facts_of(self.archive, self.collections)
        return next(uid for uid, row in sorted(facts.items()) if row["ImageCount"] == slices)

    def asked(self, endpoint: str, uid: str | None = None) -> int:
        """Return how often an endpoint was called, for one series or any."""
        calls = self.around.calls(endpoint)
        return len([r for r in calls if uid is None or r.query.get("SeriesInstanceUID") == uid])

    def expected(self) -> truth.Contents:
        """Return what the lake must hold, by the archive's own facts."""
        return truth.truth(self.archive, self.collections, self.proofs)

    def expect_nothing_wrong(self) -> None:
        """Make sure that nothing wrong and nothing temporary is in the lake, though it may not have all."""
        truth.expect_whole_or_absent(self.folder, self.expected())
        assert [p for p in truth.leftovers(self.folder) if not p.startswith(".staging/journal/")] == []

    def expect_true(self) -> None:
        """Make sure that the lake holds what it must, nothing else, and what an undisturbed one holds."""
        self.wrong()
        held = truth.contents(self.folder)
        assert held == self.expected()
        assert held == self._undisturbed()
        assert truth.leftovers(self.folder) == []
        # Everything is there, so there is nothing to do.
        asked = [self.asked(endpoint) for endpoint in DOWNLOADS]
        assert self.run() == []
        assert [self.asked(endpoint) for endpoint in DOWNLOADS] == asked

    def _undisturbed(self) -> truth.Contents:
        changed = bool(self.control.events())
        if changed or self.collections not in self.calm:
            calm = replace(self, folder=self.folder.with_name("undisturbed"))
            calm.run()
            held = truth.contents(calm.folder)
            if changed:
                return held
            self.calm[self.collections] = held
        return self.calm[self.collections]


@contextlib.contextmanager
def mirrored_archive(catalog: Catalog, folder: Place, **options: Any) -> Iterator[MirroredArchive]:
    """Serve a catalogue in which things may go wrong."""
    app = create_app(catalog)
    around = Faults(app)
    with serving(around) as url:
        yield MirroredArchive(url, app.state.archive, around, folder, **options)
