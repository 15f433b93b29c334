"""Compare the files of one series in the lake with its rows of table ``instances``, its receipt, and the archive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.lake.layout import is_foreign
from nbia_pipeline.mirror.repair import NoAnswer, Proofs
from nbia_pipeline.schema.digests import possible_series_md5s, series_md5
from nbia_pipeline.text import first_of, logger
from nbia_pipeline.verify.inventory import StoredSeries, VerifyResult

log = logger(__name__)

SHOWN = 3


def compare_files(lake: Lake, series: StoredSeries, rows: Sequence[dict[str, Any]]) -> VerifyResult:
    """Compare the files of a series with its rows of table ``instances``: sizes first, then MD5s.

    Args:
        lake: the lake.
        series: the series.
        rows: Path, Size and MD5 of each of its files.

    Returns:
        What is wrong: files that are missing, truncated, changed or unreadable; files that no row names, unless
        others are known to leave such in any folder; rows that are not those of the receipt.

    Raises:
        LakeError: the directory cannot be listed.
    """
    sizes = lake.sizes(series.path)
    wrong: dict[str, list[str]] = defaultdict(list)
    kinds = [_wrong_size(sizes.pop(row["Path"], None), row["Size"]) for row in rows]
    to_read = [row for row, kind in zip(rows, kinds, strict=True) if kind is None]
    contents = lake.side_by_side(partial(_wrong_content, lake, row) for row in to_read)
    for row, kind in zip(rows, kinds, strict=True):
        found = next(contents) if kind is None else kind
        if found is not None:
            wrong[found].append(row["Path"].rsplit("/", 1)[-1])
    extra = [path.removeprefix(f"{series.path}/") for path in sorted(sizes)]
    if ours := [path for path in extra if not is_foreign(path)]:
        wrong["extra"] = ours
    if len(ours) < len(extra):
        log.info("%s: %s files that are not the lake's own", series.path, len(extra) - len(ours))
    if series_md5([row["MD5"] for row in rows]) != series.digest:
        wrong["not matching the receipt: the rows of table instances,"] = [f"{len(rows)} of them"]
    return VerifyResult(series, len(rows), sum(row["Size"] for row in to_read), _finding(wrong, len(rows)))


def differs_from_archive(
    client: NbiaClient,
    series: tuple[str, str | None],
    digest: str | None,
    md5s: Callable[[], Mapping[str, str]],
    *,
    most: int | None = None,
) -> str | None:
    """Return how the files of a series differ from those of the archive, None if nothing shows that they do.

    The archive's digest of a series is that of the MD5s as it stores them, with leading zeros or without. So another
    digest alone shows nothing: the instances themselves are compared, then their MD5s until one differs.

    Args:
        client: the archive.
        series: SeriesInstanceUID, and SeriesMD5 of its receipt.
        digest: what getMD5Hierarchy returned; None shows nothing.
        md5s: returns the MD5s of the files in the lake by SOPInstanceUID; called only if they are needed.
        most: how many MD5s to ask for, None for all.

    Raises:
        ArchiveError: the instances cannot be listed.
    """
    uid, own = series
    if digest in (None, own):
        return None
    files = md5s()
    if digest in possible_series_md5s(files.values()):
        return None
    listed, proofs = client.sop_instance_uids(uid), Proofs(client)
    try:
        same = not listed or set(listed) == files.keys()
        if same and all(proofs.md5_of_image(sop) in (None, files[sop]) for sop in sorted(files)[:most]):
            return None
    except NoAnswer as e:
        log.warning("series %s: the digests of its images cannot be compared: %s", uid, e)
        return None
    return f"the archive has different files: its digest is {digest}, the lake's is {own}"


def lists_others(client: NbiaClient, uid: str, instances: Collection[str]) -> str | None:
    """Return how the instances of a series that the archive lists differ from those in the lake, None if not.

    A list without any shows nothing.

    Raises:
        ArchiveError: the instances cannot be listed.
    """
    listed = set(client.sop_instance_uids(uid))
    if not listed or listed == set(instances):
        return None
    kinds = {"missing": sorted(listed.difference(instances)), "not listed": sorted(set(instances) - listed)}
    named = "; ".join(f"{kind} {first_of(uids, SHOWN)}" for kind, uids in kinds.items() if uids)
    return f"getSOPInstanceUIDs lists {len(listed)}, the lake has {len(instances)} ({named})"


def _wrong_size(found: int | None, expected: int) -> str | None:
    if found is None:
        return "missing"
    if found < expected:
        return "truncated"
    return None if found == expected else "longer than it was"


def _wrong_content(lake: Lake, row: Mapping[str, Any]) -> str | None:
    try:
        digest = lake.md5(row["Path"], row["Size"])
    except LakeError as e:
        log.warning("%s", e)
        return "unreadable"
    return None if digest == row["MD5"] else "changed"


def _finding(wrong: Mapping[str, Sequence[str]], files: int) -> str | None:
    """Return what is wrong in one sentence, like ``of 20 files: missing 1.2.dcm; changed 1.3.dcm``."""
    if not wrong:
        return None
    return f"of {files} files: {'; '.join(f'{kind} {first_of(names, SHOWN)}' for kind, names in wrong.items())}"
