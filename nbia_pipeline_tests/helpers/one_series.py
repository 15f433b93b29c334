"""An archive with one series, whose digests are stored as a test says, and whose figures are what a test says."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.embedded.catalog.model import StoredInstance
from nbia_pipeline.embedded.control.operations import Operations
from nbia_pipeline.embedded.server.app import create_app
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.download import fetch_batch
from nbia_pipeline.mirror.receipt import Receipt
from nbia_pipeline.mirror.series import wanted_series
from nbia_pipeline_tests.helpers.archives import FAST, serving
from nbia_pipeline_tests.helpers.dicom import dicom
from nbia_pipeline_tests.helpers.faults import Faults
from nbia_pipeline_tests.helpers.places import Place
from nbia_pipeline_tests.helpers.tiny import tiny_catalog

COLLECTION = "Alpha Set"
UID = "1.1"
IMAGES = 5
CLASS = "1.2.840.10008.5.1.4.1.1.2"
# How many zeros the MD5 of each image begins with.
ZEROS = {1: 0, 2: 1, 3: 2, 4: 0, 5: 1}

Stored = Callable[[int, str], str | None]
"""Returns what the archive stores as the digest of an image, from its number and its MD5."""


@cache
def image(number: int, version: str = "", size: int = 0) -> bytes:
    """Return a DICOM file; the MD5 of one without a size begins with exactly as many zeros as ZEROS says."""
    for salt in range(1 << 20):
        content = dicom(
            SOPInstanceUID=f"{UID}.{number}",
            SeriesInstanceUID=UID,
            InstanceNumber=number,
            StationName=f"{version}{salt}",
            EncapsulatedDocument=bytes(size),
        )
        digest = hashlib.md5(content).hexdigest()
        if size or len(digest) - len(digest.lstrip("0")) == ZEROS[number]:
            return content
    raise AssertionError


@dataclass
class Store:
    """The images of the series; the other series of the catalog have none.

    Attributes:
        numbers: which images there are.
        version: changes their content.
        size: bytes of each, at least.
        stored: what is stored as their digests.
    """

    numbers: Sequence[int] = tuple(ZEROS)
    version: str = ""
    size: int = 0
    stored: Stored = field(default=lambda number, md5: md5)

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        numbers = self.numbers if series_uid == UID else ()
        return [StoredInstance(f"{UID}.{n}", CLASS, n, 1, len(self.content(n))) for n in numbers]

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        return self.content(int(sop_instance_uid.rsplit(".", 1)[-1]))

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        number = int(sop_instance_uid.rsplit(".", 1)[-1])
        return self.stored(number, hashlib.md5(self.content(number)).hexdigest())

    def content(self, number: int) -> bytes:
        return image(number, self.version, self.size)


@dataclass
class OneSeries:
    """A served archive with one series, and a lake for it.

    Attributes:
        url: base URL.
        store: its images.
        faults: what goes wrong, and what was asked.
        lake: the lake.
        figures: ImageCount and FileSize as listed, if not the true ones.
        before: how many requests do not count.
    """

    url: str
    store: Store
    faults: Faults
    lake: Lake
    figures: dict[str, Any] = field(default_factory=dict)
    before: int = 0

    def fresh(self, folder: Place) -> OneSeries:
        """Return the same archive as it was first, with an empty lake."""
        self._control().reset()
        vars(self.store).update(vars(Store()))
        return OneSeries(self.url, self.store, self.faults, Lake(str(folder / "lake")))

    def client(self, api: str = "v2") -> NbiaClient:
        return NbiaClient(self.url, api=api, options=replace(FAST, tries=2))

    def fetch(self, api: str = "v2") -> Receipt:
        """Fetch the series."""
        instances = self.store.instances(UID)
        true = {"ImageCount": len(instances), "FileSize": sum(i.size for i in instances)}
        self._control().edit(UID, **{**true, **self.figures})
        with self.client(api) as client:
            wanted = wanted_series(client.series(series_uid=UID))
            self.before = len(self.faults.seen)
            (receipt,) = fetch_batch(client, self.lake, wanted)
        return receipt

    def _control(self) -> Operations:
        control: Operations = self.faults.app.state.archive.control  # type: ignore[attr-defined]
        return control

    def asked(self) -> dict[str, int]:
        """Return how often each endpoint was called since the series was listed, apart from login and logout."""
        names = [e.endpoint for e in self.faults.seen[self.before :] if e.endpoint not in ("token", "logout")]
        return {name: names.count(name) for name in dict.fromkeys(names)}


@contextlib.contextmanager
def one_series() -> Iterator[OneSeries]:
    """Serve the series, until the context is left; :meth:`OneSeries.fresh` gives it a lake."""
    store = Store()
    faults = Faults(create_app(replace(tiny_catalog(), images=store)))
    with serving(faults) as url:
        yield OneSeries(url, store, faults, Lake("memory://one-series"))
