"""``nbia-pipeline doctor``: what this archive can do, and what is wrong here."""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime, timezone
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from nbia_pipeline._version import __version__
from nbia_pipeline.address import is_uri
from nbia_pipeline.archive import ArchiveError, ClientOptions, NbiaClient, NotServed
from nbia_pipeline.archive.connections import explained
from nbia_pipeline.cli.home import HOME, OUTPUT, report, say, to_stderr
from nbia_pipeline.cli.options import Options, as_command, settings_of
from nbia_pipeline.connect import address_of, connect
from nbia_pipeline.errors import error_text
from nbia_pipeline.lake import Lake, LakeError
from nbia_pipeline.settings import Settings
from nbia_pipeline.text import duration_text, size_text

OK, WARNING, FAILED = "ok", "warning", "failed"
SKEW_SECONDS = 60.0
LEAST_FREE_BYTES = 10**9
# One try each: this is about what the archive does at this moment.
OPTIONS = ClientOptions(tries=1, connect_timeout=10.0, read_timeout=60.0)


@dataclass(frozen=True)
class Line:
    """What one check found.

    Attributes:
        what: was checked.
        state: :data:`OK`, :data:`WARNING` or :data:`FAILED`.
        found: in words.
        remedy: what to do; empty where all is well.
    """

    what: str
    state: str
    found: str
    remedy: str = ""


@as_command()
def command(options: Options) -> int:
    """Check what this archive can do, and what is wrong here: settings, archive, account, lake, disk, clock, versions.

    Each line is ok, a warning or failed, and says what to do. The archive is asked with a few small requests; nothing
    is written but a file in a lake that exists, which is removed at once. The exit code is 1 if something failed.
    """
    settings = settings_of(options)
    lines = []
    for line in _lines(settings):
        lines.append(line)
        text = f"{line.state:<8}{line.what:<16}{line.found}{f': {line.remedy}' if line.remedy else ''}"
        (to_stderr if OUTPUT.quiet and line.state == FAILED else say)(text)
    failed = sum(line.state == FAILED for line in lines)
    warned = sum(line.state == WARNING for line in lines)
    report({"checks": [asdict(line) for line in lines], "failed": failed, "warnings": warned})
    say("", f"{len(lines):,} checks: {failed:,} failed, {warned:,} with a warning")
    return 1 if failed else 0


def _lines(settings: Settings) -> Iterator[Line]:
    yield from _of_settings(settings)
    yield from _of_versions()
    yield from _of_archive(settings)
    yield from _of_lake(settings)
    yield _of_home()


# --- here


def _of_settings(settings: Settings) -> Iterator[Line]:
    images = ", ".join(settings.images or ()) or "none"
    yield Line("settings", OK, f"collections {', '.join(settings.collections)}; images {images}")
    if not settings.images:
        name = settings.name_of("images")
        yield Line(
            "images", WARNING, "no images are mirrored", f"name collections in {name}, or in `nbia-pipeline run`"
        )


def _of_versions() -> Iterator[Line]:
    packages = {name: _version(name) for name in ("dagster", "pyarrow", "requests", "pydicom")}
    found = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    yield Line("versions", OK, f"nbia-pipeline {__version__}, Python {platform.python_version()}, {found}")
    missing = [name for name, version in packages.items() if not version]
    if missing:
        yield Line("packages", FAILED, f"{', '.join(missing)} not installed", "pip install nbia-pipeline")
    extras = _extras()
    if extras:
        there, rest = (", ".join(e for e, has in extras.items() if has == want) or "none" for want in (True, False))
        yield Line("extras", OK, f"installed {there}; not installed {rest}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extras() -> dict[str, bool]:
    """Return for each extra that a person may install whether all of its packages are there."""
    try:
        needed = metadata.requires("nbia-pipeline") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, bool] = {}
    for requirement in needed:
        extra, name = re.search(r"extra == ['\"](\w+)", requirement), re.match(r"[\w.-]+", requirement)
        if extra and name and extra[1] != "dev":
            found[extra[1]] = found.get(extra[1], True) and _version(name[0]) is not None
    return found


def _of_home() -> Line:
    given = os.environ.get("DAGSTER_HOME")
    home = Path(given or HOME).absolute()
    where = f"DAGSTER_HOME is {home}" if given else f"DAGSTER_HOME is not set: {home} is used"
    problem = _not_writable(home)
    if problem:
        return Line("dagster home", FAILED, f"{where}, which cannot be written ({problem})", "set DAGSTER_HOME")
    return Line("dagster home", OK, where if home.exists() else f"{where}; the first run creates it")


def _not_writable(folder: Path) -> str | None:
    """Return why a directory, or the one that it would be made in, cannot be written."""
    there = next((f for f in (folder, *folder.parents) if f.exists()), Path("/"))
    if not there.is_dir():
        return f"{there} is not a directory"
    return None if os.access(there, os.W_OK | os.X_OK) else f"no permission to write to {there}"


# --- the lake


def _of_lake(settings: Settings) -> Iterator[Line]:
    folder = None if is_uri(settings.lake) else Path(settings.lake)
    name = settings.name_of("lake")
    try:
        lake = Lake(settings.lake, fsync=settings.fsync)
        if folder is not None and not folder.exists():
            problem = _not_writable(folder)
            if problem:
                yield Line("lake", FAILED, f"{settings.lake} cannot be created ({problem})", f"set {name}")
            else:
                yield Line("lake", OK, f"{settings.lake} does not exist yet; the first run creates it")
        else:
            version = lake.format
            lake.check_writable()
            yield Line("lake", OK, f"{lake.uri} can be written, format {version}")
    except LakeError as e:
        yield Line("lake", FAILED, error_text(e, settings.name_of))
        return
    if folder is not None:
        there = next(f for f in (folder, *folder.parents) if f.exists())
        free = shutil.disk_usage(there).free
        few = free < LEAST_FREE_BYTES
        remedy = f"make room, or set {name} to another disk" if few else ""
        yield Line("disk", WARNING if few else OK, f"{size_text(free)} free", remedy)


# --- the archive


def _of_archive(settings: Settings) -> Iterator[Line]:
    try:
        url = address_of(settings)  # which starts the embedded one
        began = time.monotonic()
        date_sent = _ask(settings, url)
    except ArchiveError as e:
        yield Line("archive", FAILED, error_text(e, settings.name_of))
        return
    seconds = time.monotonic() - began
    yield Line("archive", OK, f"{settings.archive} at {url} answers in {seconds:.2f} s")
    yield _of_clock(date_sent, datetime.now(timezone.utc))
    with connect(settings, OPTIONS) as client:
        try:
            began = time.monotonic()
            names = client.collection_values()
        except ArchiveError as e:
            yield Line("account", FAILED, error_text(e, settings.name_of))
            return
        seconds = time.monotonic() - began
        found = f"{settings.username} on {settings.api}: {len(names):,} collections, in {seconds:.2f} s"
        empty = "" if names else f"check {settings.name_of('username')} and {settings.name_of('archive')}"
        yield Line("account", OK if names else WARNING, found, empty)
        if names:
            yield from _of_calls(client, settings, names)


def _ask(settings: Settings, url: str) -> str | None:
    """Return the date in the answer to a request without a token, whatever its status.

    Raises:
        ArchiveUnreachable: there is no answer.
    """
    here = urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")  # to which no proxy leads
    try:
        with requests.Session() as session:
            session.trust_env = not here
            with session.get(url, timeout=10, stream=True, verify=settings.ca_bundle or True) as answer:
                return answer.headers.get("Date")
    except Exception as e:
        raise explained(e, url, sending=True) from e


def _of_clock(sent: str | None, now: datetime) -> Line:
    """Compare the clock of the archive with ours."""
    try:
        skew = (now - parsedate_to_datetime(sent or "")).total_seconds()
    except (TypeError, ValueError):
        return Line("clock", WARNING, "the archive states no time to compare with")
    found = f"{duration_text(abs(skew))} {'after' if skew >= 0 else 'before'} that of the archive"
    if abs(skew) <= SKEW_SECONDS:
        return Line("clock", OK, found)
    return Line(
        "clock", WARNING, found, "set the clock of this machine: the days of requests for releases depend on it"
    )


def _of_calls(client: NbiaClient, settings: Settings, names: list[str]) -> Iterator[Line]:
    """Make each call once, about a small collection and its smallest series."""

    def first(chunks: Iterator[bytes]) -> int:
        return len(next(chunks, b""))

    line, counts = _call("counts", client.collection_counts, settings)
    yield line
    collection = min(names, key=lambda name: (counts or {}).get(name) or float("inf"))
    line, rows = _call("series", lambda: client.series(collection), settings, needed=True)
    yield line
    if rows is None or not rows.num_rows:
        return
    known = min(rows.to_pylist(), key=lambda row: row["FileSize"] or float("inf"))
    uid = known["SeriesInstanceUID"]
    line, images = _call("instances", lambda: client.sop_instance_uids(uid), settings, needed=True)
    yield line
    needed: dict[str, Callable[[], Any]] = {
        "patients": lambda: client.patients(collection),
        "studies": lambda: client.studies(collection),
        "download": lambda: client.image_with_md5(uid, first),
    }
    optional: dict[str, Callable[[], Any]] = {
        "descriptions": lambda: client.collection_description(collection),
        "licenses": client.licenses,
        "metadata": lambda: client.series_metadata([uid]),
        "updates": lambda: client.updated_series(date.today()),  # noqa: DTZ011 - any day will do
        "series digest": lambda: client.md5_hierarchy(series_uid=uid),
        "series size": lambda: client.series_size(uid),
        "states": lambda: client.series_states([uid]),
        "shared carts": lambda: client.contents_by_name("nbia-pipeline"),
        "license text": lambda: client.image(uid, first),
    }
    if images:
        optional["image digest"] = lambda: client.md5_of_image(images[0])
        optional["single image"] = lambda: client.single_image(uid, images[0], first)
    for name, call in needed.items():
        yield _call(name, call, settings, needed=True)[0]
    for name, call in optional.items():
        yield _call(name, call, settings)[0]


def _call(name: str, call: Callable[[], Any], settings: Settings, *, needed: bool = False) -> tuple[Line, Any]:
    """Make a call, and return what is said of it and what it returned; one that is not needed may fail."""
    began = time.monotonic()
    try:
        answer = call()
    except NotServed as e:
        return Line(name, OK, f"not in {settings.api}: {error_text(e, settings.name_of)}"), None
    except ArchiveError as e:
        return Line(name, FAILED if needed else WARNING, error_text(e, settings.name_of)), None
    return Line(name, OK, f"answers in {time.monotonic() - began:.2f} s"), answer
