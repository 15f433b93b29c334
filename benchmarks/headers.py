"""Headers to Arrow tables: by us and by pydicom, of the same CT slices on a warm disk, and large objects.

Slices of 120 elements, as GE scanners write them, in series of 150: what changes from slice to slice does so here. Ours
are rows of ``instance_headers``, ``instance_references`` and ``annotations``; pydicom's side reads the header and makes
its JSON, no tables. Both run in this process, in turn; files are read as the asset reads them, 64 KiB each, from a page
cache that the first reading filled. A segmentation of 6,000 frames and a structure set of 7.5 MB follow.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pydicom

sys.path.insert(0, str(Path(__file__).parent.parent))

from nbia_pipeline.headers.batch import Batch, Known
from nbia_pipeline.headers.shards.files import read_files
from nbia_pipeline.lake import Lake
from nbia_pipeline_tests.helpers.dicom_bytes import CT, PREAMBLE, element, meta

RATE_BAR, RATIO_BAR, BYTES_BAR, SEG_BAR = 5000, 10, 200, 0.3
SERIES_FILES, PIXELS = 150, 524_288
SEG, RTSTRUCT = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.3"
_ROOT = "1.3.6.1.4.1.14519.5.2.1.6279.6001."

# tag, VR, value of every slice; {} is of the slice, of ITS.
_SLICE = """
00080008 CS ORIGINAL\\PRIMARY\\AXIAL|00080016 UI CLASS|00080018 UI SOP|00080020 DA 20000101|00080021 DA 20000101
00080022 DA 20000101|00080023 DA 20000101|00080030 TM 112233|00080031 TM 112233|00080032 TM TIME|00080033 TM TIME
00080050 SH 2819497684894126|00080060 CS CT|00080070 LO GE MEDICAL SYSTEMS|00080080 LO |00080090 PN |00081030 LO CHEST
0008103E LO 2.5 MM|00081090 LO LightSpeed Plus|00081140 SQ RELATED|00090010 LO GEMS_IDEN_01|00091001 LO GE_GENESIS_FF
00091002 SH CT01|00091004 SH LIGHTSPEED|00091027 SL SECONDS|00100010 PN |00100020 LO LIDC-IDRI-0001|00100030 DA
00100040 CS M|00101010 AS 061Y|00101030 DS 80.000000|001021B0 LT |00120062 CS YES|00120063 LO DCM:113100/113105/113107
00120064 SQ METHOD|00130010 LO CTP|00131010 LO LIDC-IDRI|00131013 LO 62796001|00180010 LO IV|00180015 CS CHEST
00180022 CS HELICAL MODE|00180050 DS 2.500000|00180060 DS 120|00180090 DS 500.000000|00181020 LO LightSpeedApps2.4.2
00181100 DS 360.000000|00181110 DS 949.075012|00181111 DS 541.000000|00181120 DS 0.000000|00181130 DS 144.399994
00181140 CS CW|00181150 IS 570|00181151 IS CURRENT|00181152 IS EXPOSURE|00181160 SH BODY FILTER|00181170 IS 48000
00181190 DS 1.200000|00181210 SH STANDARD|00185100 CS FFS|00190010 LO GEMS_ACQU_01|00191002 SL 912|00191003 DS 389.75
00191004 DS 1.023900|00191011 SS 1|00191018 LO S|0019101A LO I|00191023 DS 7.500000|00191024 DS DRIFT|0019102C SL 1234
0020000D UI STUDY|0020000E UI SERIES|00200010 SH |00200011 IS 3000566|00200012 IS 1|00200013 IS NUMBER
00200032 DS -166.000000\\-171.699997\\Z|00200037 DS 1.000000\\0.000000\\0.000000\\0.000000\\1.000000\\0.000000
00200052 UI FRAME|00201040 LO SN|00201041 DS Z|00210010 LO GEMS_RELA_01|00211003 SS SMALL|00211035 SS 0|00211036 SS 1
00211091 SS 0|00230010 LO GEMS_STDY_01|00231010 SS 0|00231070 FD SECONDS|00270010 LO GEMS_IMAG_01|00271006 SL 0
00271010 SS 0|00271035 SS 2|00271040 SH S|00271041 FL Z|00271050 FL SECONDS|00280002 US 1|00280004 CS MONOCHROME2
00280010 US 512|00280011 US 512|00280030 DS 0.703125\\0.703125|00280100 US 16|00280101 US 16|00280102 US 15
00280103 US 1|00280106 SS SMALL|00280107 SS LARGE|00280120 SS -2000|00280303 CS MODIFIED|00281050 DS -600
00281051 DS 1600|00281052 DS -1024|00281053 DS 1|00400244 DA 20000101|00400245 TM 112233|00430010 LO GEMS_PARM_01
00431010 US 400|00431012 SS 14|00431027 SH /1.0:1|00450010 LO GEMS_HELIOS_01|00451001 SS 4
"""
_KINDS = {"SL": "i", "SS": "h", "US": "H", "FD": "d", "FL": "f"}


Files = list[tuple[str, str, Path]]
T = TypeVar("T")


def item(content: bytes) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(content)) + content


def sequence(tag: int, *items: bytes) -> bytes:
    return element(tag, "SQ", b"".join(map(item, items)))


def code(value: str, meaning: str) -> bytes:
    return element(0x00080100, "SH", value) + element(0x00080102, "SH", "DCM") + element(0x00080104, "LO", meaning)


def reference(sop: str) -> bytes:
    return element(0x00081150, "UI", CT) + element(0x00081155, "UI", sop)


def slices(count: int, seed: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield SOPInstanceUID, SeriesInstanceUID and the header of the slices of a series."""
    chance = random.Random(seed)

    def uid() -> str:
        return f"{_ROOT}{chance.getrandbits(96)}"

    fixed = {"CLASS": CT, "STUDY": uid(), "SERIES": uid(), "FRAME": uid(), "RELATED": "", "METHOD": ""}
    sequences = {
        "RELATED": sequence(0x00081140, reference(uid())),
        "METHOD": sequence(0x00120064, code("113100", "Basic Profile"), code("113107", "Retain Modified Dates Option")),
    }
    lines = [one.split(" ", 2) for line in _SLICE.strip().splitlines() for one in f"{line} ".split("|")]
    for number in range(1, count + 1):
        z, time_of = f"{2.5 * number - 207.5:.6f}", f"1122{number % 60:02d}.{chance.randrange(10**6):06d}"
        its = {"SOP": uid(), "TIME": time_of, "NUMBER": str(number), "Z": z, "SECONDS": str(946684800 + number)}
        its |= {"CURRENT": str(chance.randrange(100, 400)), "EXPOSURE": str(chance.randrange(2000, 9000))}
        its |= {
            "DRIFT": f"{chance.random() * 10:.6f}",
            "SMALL": str(chance.randrange(90)),
            "LARGE": str(chance.randrange(999)),
        }
        its |= fixed
        parts = [PREAMBLE, meta(sop=its["SOP"])]
        for tag, vr, text in lines:
            value = "\\".join(its.get(word, word) for word in text.rstrip().split("\\"))
            if text.rstrip() in sequences:
                parts.append(sequences[text.rstrip()])
            elif vr in _KINDS:
                number_of = float(value) if vr in ("FD", "FL") else int(float(value))
                parts.append(element(int(tag, 16), vr, struct.pack(f"<{_KINDS[vr]}", number_of)))
            else:
                parts.append(element(int(tag, 16), vr, value))
        parts.append(b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<L", PIXELS))
        yield its["SOP"], its["SERIES"], b"".join(parts)


def segmentation(frames: int) -> bytes:
    """Return a segmentation whose frames name a slice each."""

    def frame(number: int) -> bytes:
        source = reference(f"{_ROOT}{number // 20}") + sequence(0x0040A170, code("121322", "Source image"))
        derived = sequence(0x00089215, code("113076", "Segmentation")) + sequence(0x00082112, source)
        place = element(0x00200032, "DS", f"-166.0\\-171.6\\{number // 20 * 2.5}")
        content = element(0x00209157, "UL", struct.pack("<2L", number % 20 + 1, number // 20 + 1))
        identified = element(0x0062000B, "US", struct.pack("<H", number % 20 + 1))
        return (
            sequence(0x00089124, derived)
            + sequence(0x00209111, content)
            + sequence(0x00209113, place)
            + sequence(0x0062000A, identified)
        )

    segments = [
        element(0x00620004, "US", struct.pack("<H", n + 1)) + element(0x00620005, "LO", f"S{n}") for n in range(20)
    ]
    parts = [element(0x00080016, "UI", SEG), element(0x00080018, "UI", "1.2.3"), element(0x0020000E, "UI", "1.2")]
    parts += [sequence(0x00620002, *segments), sequence(0x52009230, *map(frame, range(frames)))]
    return PREAMBLE + meta() + b"".join(parts)


def structure_set(contours: int) -> bytes:
    """Return a structure set of ten ROIs, whose contours have 40 points."""
    points = "\\".join(f"{n * 1.37 - 90:.3f}\\{n * 2.11 - 70:.3f}\\-12.500" for n in range(40))

    def contour(number: int) -> bytes:
        image = sequence(0x30060016, reference(f"{_ROOT}{number % 150}"))
        return (
            image
            + element(0x30060042, "CS", "CLOSED_PLANAR")
            + element(0x30060046, "IS", "40")
            + element(0x30060050, "DS", points)
        )

    each = contours // 10
    rois = [
        sequence(0x30060040, *(contour(n) for n in range(each))) + element(0x30060084, "IS", str(roi + 1))
        for roi in range(10)
    ]
    names = [element(0x30060022, "IS", str(roi + 1)) + element(0x30060026, "LO", f"ROI {roi}") for roi in range(10)]
    parts = [element(0x00080016, "UI", RTSTRUCT), element(0x00080018, "UI", "1.2.3"), element(0x0020000E, "UI", "1.2")]
    return PREAMBLE + meta() + b"".join([*parts, sequence(0x30060020, *names), sequence(0x30060039, *rois)])


def ours(files: Files) -> dict[str, pa.Table]:
    """Read headers to tables."""
    batch = Batch()
    lake = Lake(str(files[0][2].parent.parent))
    known = (Known(sop, uid, "1.2", "P", "C", CT, "md5", f"images/{path.name}") for sop, uid, path in files)
    read_files(lake, known, batch.add)
    return batch.tables()


def theirs(files: Files) -> None:
    """Read headers to JSON with pydicom."""
    for _, _, path in files:
        json.dumps(pydicom.dcmread(path, stop_before_pixels=True).to_json_dict())


def seconds(call: Callable[[Files], T], files: Files) -> tuple[float, T]:
    """Return the processor time of a call, and what it returns."""
    started = time.process_time()
    found = call(files)
    return time.process_time() - started, found


def main() -> None:
    """Measure, print, and fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1200, help="slices of a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        missed = measure(images, options.files, options.rounds)
    raise SystemExit("; ".join(missed) or None)


def written(folder: Path, files: int, seed: int) -> Files:
    """Write series of slices, whose pixels are holes, and read them once."""
    found = []
    for number in range(files // SERIES_FILES):
        for sop, series, content in slices(SERIES_FILES, seed + number):
            path = folder / f"{sop}.dcm"
            with path.open("wb") as file:
                file.write(content)
                file.truncate(len(content) + PIXELS)
            path.read_bytes()
            found.append((sop, series, path))
    return found


def measure(folder: Path, files: int, rounds: int) -> list[str]:
    """Measure; return the bars that are missed."""
    rates, ratios, tables = [], [], ours(written(folder, SERIES_FILES, 9999))  # the first imports and grows
    for number in range(rounds):
        some = written(folder, files, 100 * number)  # new ones: what is remembered of others does not count
        took, found = seconds(ours, some)
        tables.update(found)
        pydicom_took, _ = seconds(theirs, some[:SERIES_FILES])
        rates.append(files / took)
        ratios.append(files / took * pydicom_took / SERIES_FILES)
        sys.stdout.write(f"{rates[-1]:,.0f} files/s and core, {ratios[-1]:.0f} times pydicom\n")
    headers = tables["instance_headers"].sort_by([("SeriesInstanceUID", "ascending"), ("InstanceNumber", "ascending")])
    path = folder / "part-0.parquet"
    pq.write_table(headers.drop_columns(["Collection"]), path, compression="zstd", row_group_size=4000)
    size = path.stat().st_size / headers.num_rows
    large = {}
    for name, content in (("SEG of 6,000 frames", segmentation(6000)), ("RTSTRUCT", structure_set(6600))):
        path = folder / "large.dcm"
        path.write_bytes(content)
        large[name] = statistics.median(seconds(ours, [("1.2.3", "1.2", path)])[0] for _ in range(3))
        sys.stdout.write(f"{name}, {len(content) / 1e6:.1f} MB: {large[name]:.2f} s\n")
    rate, ratio = statistics.median(rates), statistics.median(ratios)
    sys.stdout.write(f"median: {rate:,.0f} files/s and core, {ratio:.0f} times pydicom; {size:.0f} bytes an instance\n")
    bars = {
        f"{rate:,.0f} files/s are less than {RATE_BAR:,}": rate >= RATE_BAR,
        f"{ratio:.1f} times pydicom are less than {RATIO_BAR}": ratio >= RATIO_BAR,
        f"{size:.0f} bytes an instance are more than {BYTES_BAR}": size <= BYTES_BAR,
        f"the segmentation took {large['SEG of 6,000 frames']:.2f} s": large["SEG of 6,000 frames"] <= SEG_BAR,
    }
    return [what for what, met in bars.items() if not met]


if __name__ == "__main__":
    main()
