"""The files of the road: many gigabytes of real DICOM that cost a second to make.

A few slices of the phantoms are rendered and deflated once. Every file has one of them for its pixels and a header of
its own, so that UIDs, sizes and digests are those of thousands of different files, and a zip is put together from what
is deflated already. All slices of a series lie in one plane: nothing here looks at the geometry.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING

from nbia_pipeline.embedded.api.zip_writer import Packed
from nbia_pipeline.embedded.catalog.model import StoredInstance
from nbia_pipeline.embedded.phantoms.dicom_files import encode, image_header, image_pixels

if TYPE_CHECKING:
    from nbia_pipeline.embedded.catalog.model import ImageStore
    from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan

SMALLEST, LARGEST = 20_000_000, 60_000_000
"""Bytes on the wire of the smallest and of the largest series."""

_STEP = 37  # has no factor in common with 60: neighbors differ
_DISTINCT = 4
_NUMBER = b"\x20\x00\x13\x00IS\x06\x00"  # (0020,0013) InstanceNumber, six characters
_PIXELS = b"\xe0\x7f\x10\x00OW\x00\x00"  # (7FE0,0010) PixelData; four bytes for the length follow
_END = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS).flush()


class Slice:
    """Pixels that many files share, deflated so that they may stand anywhere in a stream."""

    def __init__(self, pixels: bytes) -> None:
        """Deflate them."""
        self.pixels = pixels
        self.deflated = _deflated(pixels)


def _deflated(data: bytes) -> bytes:
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush(zlib.Z_FULL_FLUSH)


def wire_sizes(series: int) -> list[int]:
    """Return how large the zip of each series shall be: all sizes from 20 to 60 MB, large and small ones mixed."""
    step = (LARGEST - SMALLEST) / max(series - 1, 1)
    return [SMALLEST + round(step * (number * _STEP % series)) for number in range(series)]


class RoadSeries:
    """The files of one series."""

    def __init__(self, plan: SeriesPlan, slices: Sequence[Slice], wire_bytes: int) -> None:
        """Take the plan, the pixels, and how large the zip shall be; a file more or less decides."""
        self.plan = plan
        self._slices = slices
        self._mean = sum(len(s.deflated) for s in slices) / len(slices)
        self.count = max(1, round(wire_bytes / (self._mean + len(self._template) / 2)))
        self._known: dict[str, tuple[str, int]] = {}

    @cached_property
    def _template(self) -> bytes:
        """The header of the first image, with six digits for the number of the image."""
        dataset = image_header(self.plan, 0)
        dataset.InstanceNumber = "000001"
        head = encode(dataset, self.plan.sop_instance(0))
        length = len(self._slices[0].pixels).to_bytes(4, "little")
        if not head.endswith(_PIXELS + bytes(4)) or head.count(_NUMBER) != 1:
            raise ValueError("a header is not as it was written")
        return head[:-4] + length

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {self.plan.sop_instance(n): n for n in range(self.count)}

    @cached_property
    def instances(self) -> tuple[StoredInstance, ...]:
        """The instances by InstanceNumber."""
        size = len(self._template) + len(self._slices[0].pixels)
        return tuple(StoredInstance(sop, self.plan.sop_class, n + 1, 1, size) for sop, n in self._numbers.items())

    def _parts(self, sop: str) -> tuple[bytes, Slice]:
        number = self._numbers[sop]
        head = self._template.replace(self.plan.sop_instance(0).encode(), sop.encode())
        return head.replace(_NUMBER + b"000001", _NUMBER + b"%06d" % (number + 1)), self._slices[number % _DISTINCT]

    def read(self, sop: str) -> bytes:
        """Return a file; raises KeyError if there is no such file."""
        head, pixels = self._parts(sop)
        return head + pixels.pixels

    def known(self, sop: str) -> tuple[str, int]:
        """Return MD5 and CRC-32 of a file."""
        if sop not in self._known:
            content = self.read(sop)
            self._known[sop] = hashlib.md5(content, usedforsecurity=False).hexdigest(), zlib.crc32(content)
        return self._known[sop]

    def packed(self, sop: str) -> Packed:
        """Return a file as it stands in a zip."""
        head, pixels = self._parts(sop)
        return Packed(self.known(sop)[1], len(head) + len(pixels.pixels), _deflated(head) + pixels.deflated + _END)


class RoadStore:
    """The files of all series; implements :class:`~nbia_pipeline.embedded.catalog.model.ImageStore`, deflated too."""

    def __init__(self, plans: Sequence[SeriesPlan], behind: ImageStore) -> None:
        """Take the plans of the series, of which all of one modality have the same pixels, and a store of others."""
        self._behind = behind

        @cache
        def slices(modality: str) -> list[Slice]:
            kind = next(plan for plan in plans if plan.modality == modality)
            planes, middle = kind.geometry.slices, kind.geometry.slices // 2
            return [Slice(image_pixels(kind, (middle + n) % planes)) for n in range(_DISTINCT)]

        sizes = wire_sizes(len(plans))
        self._series = {
            plan.uid: RoadSeries(plan, slices(plan.modality), size) for plan, size in zip(plans, sizes, strict=True)
        }

    def instances(self, series_uid: str) -> Sequence[StoredInstance]:
        """Return the instances of a series by InstanceNumber; empty for a series without files."""
        found = self._series.get(series_uid)
        return self._behind.instances(series_uid) if found is None else found.instances

    def read(self, series_uid: str, sop_instance_uid: str) -> bytes:
        """Return the bytes of one DICOM file; raises KeyError if there is no such file."""
        found = self._series.get(series_uid)
        return self._behind.read(series_uid, sop_instance_uid) if found is None else found.read(sop_instance_uid)

    def md5(self, series_uid: str, sop_instance_uid: str) -> str | None:
        """Return the MD5 of a file; raises KeyError if there is no such file."""
        found = self._series.get(series_uid)
        return self._behind.md5(series_uid, sop_instance_uid) if found is None else found.known(sop_instance_uid)[0]

    def packed(self, series_uid: str, sop_instance_uid: str) -> Packed | None:
        """Return a deflated file, or None for a series that is not of this store."""
        found = self._series.get(series_uid)
        return None if found is None else found.packed(sop_instance_uid)
