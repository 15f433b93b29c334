"""Write a zip as a stream from files that are deflated already.

The standard library's writer deflates on every download; here a file is deflated once and then copied,
which leaves a benchmark's processors to the client. The layout is that of a streamed zip: a data descriptor
follows each entry, and sizes are in the central directory only.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_FULL = 0xFFFFFFFF
# Offsets from here on need the 64-bit format.
_offset_limit = _FULL
_COUNT_LIMIT = 0xFFFF
# Bits 3 and 11: a data descriptor follows, names are UTF-8. Server: its library sets both.
_FLAGS = 0x0808
_DEFLATED = 8
_LEVEL = 1


@dataclass(frozen=True)
class Packed:
    """A deflated file.

    Attributes:
        crc: CRC-32 of the file.
        size: bytes of the file.
        data: raw deflate stream.
    """

    crc: int
    size: int
    data: bytes

    def to_bytes(self) -> bytes:
        """Return the file with its checksum and size as one string of bytes."""
        return struct.pack("<IQ", self.crc, self.size) + self.data

    @classmethod
    def from_bytes(cls, stored: bytes) -> Packed:
        """Return what :meth:`to_bytes` wrote."""
        crc, size = struct.unpack_from("<IQ", stored)
        return cls(crc, size, stored[12:])


def pack(data: bytes) -> Packed:
    """Deflate a file, quickly rather than well.

    Raises:
        ValueError: the file has 4 GiB or more, too much for a streamed zip entry.
    """
    if len(data) >= _FULL:
        raise ValueError("a file of 4 GiB or more does not fit into a streamed zip entry")
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return Packed(zlib.crc32(data), len(data), deflater.compress(data) + deflater.flush())


class ZipStream:
    """A zip in the making: entries, then :meth:`close`."""

    def __init__(self) -> None:
        self._offset = 0
        self._directory: list[bytes] = []

    def entry(self, name: str, packed: Packed) -> Iterator[bytes]:
        """Yield one entry, stamped with the present time. Server: stamped with the download's."""
        raw_name = name.encode()
        now = time.localtime()
        date = (max(now.tm_year, 1980) - 1980) << 9 | now.tm_mon << 5 | now.tm_mday
        clock = now.tm_hour << 11 | now.tm_min << 5 | now.tm_sec // 2
        common = (_FLAGS, _DEFLATED, clock, date)
        header = struct.pack("<4s5H3I2H", b"PK\3\4", 20, *common, 0, 0, 0, len(raw_name), 0) + raw_name
        sizes = (packed.crc, len(packed.data), packed.size)
        descriptor = struct.pack("<4s3I", b"PK\7\x08", *sizes)
        # An offset beyond 4 GiB stands in an extra field, as the 64-bit format wants it.
        far = self._offset >= _offset_limit
        extra = struct.pack("<2HQ", 1, 8, self._offset) if far else b""
        version = 45 if far else 20
        fixed = struct.pack(
            "<4s6H3I5H2I",
            *(b"PK\1\2", version, version, *common, *sizes),
            *(len(raw_name), len(extra), 0, 0, 0, 0, _FULL if far else self._offset),
        )
        self._directory.append(fixed + raw_name + extra)
        self._offset += len(header) + len(packed.data) + len(descriptor)
        yield header
        yield packed.data
        yield descriptor

    def close(self) -> bytes:
        """Return the central directory, which ends the zip."""
        directory, count, start = b"".join(self._directory), len(self._directory), self._offset
        end, wide = b"", start >= _offset_limit or count >= _COUNT_LIMIT
        if wide:
            far = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
            end = far + struct.pack("<4sIQI", b"PK\6\7", 0, start + len(directory), 1)
        few, near = min(count, _COUNT_LIMIT), _FULL if wide else start
        end += struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, few, few, len(directory), near, 0)
        return directory + end
