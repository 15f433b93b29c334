"""Zips as the archive sends them, and as it should not."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable

import pydicom

from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline_tests.helpers.faults import changed

MD5_LIST = "md5hashes.csv"

Entries = list[tuple[str, bytes]]


def altered(change: Callable[[Entries], Entries]) -> Fault:
    """Send the true zip with its entries changed; still a well-formed zip."""
    return changed(lambda body: pack(change(unpack(body))))


def unpack(body: bytes) -> Entries:
    """Return names and contents of a zip, in order."""
    with zipfile.ZipFile(io.BytesIO(body)) as zipped:
        return [(e.filename, zipped.read(e)) for e in zipped.infolist()]


def pack(entries: Entries) -> bytes:
    """Return a zip of these names and contents."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in entries:
            zipped.writestr(name, content)
    return target.getvalue()


def with_true_list(entries: Entries) -> Entries:
    """Return the entries with a list of digests that fits them."""
    images = [(n, c) for n, c in entries if n != MD5_LIST]
    text = io.StringIO()
    rows = [[n, hashlib.md5(c, usedforsecurity=False).hexdigest()] for n, c in images]
    csv.writer(text, lineterminator="\n").writerows([["Filename", "MD5Hash"], *rows])
    return [*images, (MD5_LIST, text.getvalue().encode())]


def without_first(entries: Entries) -> Entries:
    """The server met a missing file: the zip closes cleanly just before it, without the list."""
    return entries[1:-1]


def without_first_but_listed(entries: Entries) -> Entries:
    return entries[1:]


def one_short_and_consistent(entries: Entries) -> Entries:
    """The server forgot an instance altogether: only the archive's own list of instances tells."""
    return with_true_list(entries[1:])


def truncated_file(entries: Entries) -> Entries:
    """The server met a read error: a shorter file with a CRC that fits."""
    return [(entries[0][0], entries[0][1][:-100]), *entries[1:]]


def flipped_byte(entries: Entries) -> Entries:
    name, content = entries[0]
    return [(name, content[:-1] + bytes([content[-1] ^ 1])), *entries[1:]]


def wrong_digest(entries: Entries) -> Entries:
    name, content = entries[-1]
    lines = content.decode().splitlines()
    lines[1] = lines[1].split(",")[0] + "," + "0" * 32
    return [*entries[:-1], (name, "\n".join([*lines, ""]).encode())]


def empty_digest(entries: Entries) -> Entries:
    name, content = entries[-1]
    lines = content.decode().splitlines()
    lines[1] = lines[1].split(",")[0] + ","
    return [*entries[:-1], (name, "\n".join([*lines, ""]).encode())]


def nothing_at_all(entries: Entries) -> Entries:
    return []


def not_dicom(entries: Entries) -> Entries:
    return with_true_list([(entries[0][0], b"PK but not DICOM" * 20), *entries[1:]])


def climbing_name(entries: Entries) -> Entries:
    return with_true_list([("../../evil.dcm", entries[0][1]), *entries[1:]])


def absolute_name(entries: Entries) -> Entries:
    return with_true_list([("/tmp/evil.dcm", entries[0][1]), *entries[1:]])


def same_instance_twice(entries: Entries) -> Entries:
    return with_true_list([("again.dcm", entries[0][1]), *entries])


def bomb(entries: Entries) -> Entries:
    """A small zip that unpacks to 40 MB."""
    return [("bomb.dcm", bytes(40 << 20)), *entries]


def odd_instance_number(entries: Entries) -> Entries:
    """The first file has an InstanceNumber that is none."""
    header = pydicom.dcmread(io.BytesIO(entries[0][1]))
    header["InstanceNumber"]._value = "abc"
    target = io.BytesIO()
    header.save_as(target)
    return with_true_list([(entries[0][0], target.getvalue()), *entries[1:]])
