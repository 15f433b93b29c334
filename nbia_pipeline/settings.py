"""The configuration: read once from the environment, into one typed and checked object."""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from nbia_pipeline.schema.account import GUEST as GUEST

KNOWN_ARCHIVES = {
    "tcia": "https://services.cancerimagingarchive.net/nbia-api",
    "nlst": "https://nlst.cancerimagingarchive.net/nbia-api",
}
EMBEDDED = "embedded"

CATALOGUE_CRON = "0 2 * * *"
RECONCILE_CRON = "0 3 * * *"
POLL_SECONDS = 3600
SOONEST_POLL_SECONDS = 60  # the server keeps its answers that long

VARIABLES = (
    "NBIA_ARCHIVE",
    "NBIA_API",
    "NBIA_USERNAME",
    "NBIA_PASSWORD",
    "NBIA_LAKE",
    "NBIA_COLLECTIONS",
    "NBIA_IMAGES",
    "NBIA_CA_BUNDLE",
    "NBIA_POLL_SECONDS",
    "NBIA_CATALOGUE_CRON",
    "NBIA_RECONCILE_CRON",
)


class SettingsError(ValueError):
    """A variable that cannot be used; the message names it, its value and the remedy."""


@dataclass(frozen=True)
class Settings:
    """Where the data come from and where they go. Checked when made.

    Attributes:
        archive: ``embedded``, ``tcia``, ``nlst``, or a base URL that ends in ``/nbia-api``.
        api: ``v2`` (the guide's, with a token) or ``v4`` (no token needed).
        username: account at the archive.
        password: its password; never printed.
        lake: absolute directory, or URI, of the lake.
        collections: names or globs of the collections whose tables are kept.
        images: names or globs of the collections whose images are mirrored; None takes the default:
            all of the embedded archive, none of another.
        ca_bundle: file of certificates to trust, or None for the system's.
        poll_seconds: seconds between two ticks of a sensor.
        catalogue_cron: when the schedule of the catalogue fires (UTC); Dagster checks it when definitions are built.
        reconcile_cron: when the schedule that lists every kept collection whole fires (UTC); likewise.

    Raises:
        SettingsError: a value is unknown or contradicts another.
    """

    archive: str = EMBEDDED
    api: str = "v2"
    username: str = GUEST
    password: str = field(default="", repr=False)
    lake: str = "./lake"
    collections: tuple[str, ...] = ("*",)
    images: tuple[str, ...] | None = None
    ca_bundle: str | None = None
    poll_seconds: int = POLL_SECONDS
    catalogue_cron: str = CATALOGUE_CRON
    reconcile_cron: str = RECONCILE_CRON

    def __post_init__(self) -> None:
        _check_archive(self.archive)
        if self.api not in ("v2", "v4"):
            raise SettingsError(f"NBIA_API is {self.api!r}: set it to v2 or v4")
        _check_account(self.username, self.password)
        if not self.lake.strip():
            raise SettingsError("NBIA_LAKE is empty: set it to a directory or a URI such as s3://bucket/lake")
        if not self.collections:
            raise SettingsError("NBIA_COLLECTIONS is empty: name collections or globs, or unset it for all")
        if self.ca_bundle is not None and not Path(self.ca_bundle).is_file():
            raise SettingsError(f"NBIA_CA_BUNDLE is {self.ca_bundle!r}: there is no such file")
        if self.poll_seconds < SOONEST_POLL_SECONDS:
            raise SettingsError(
                f"NBIA_POLL_SECONDS is {self.poll_seconds}: set it to {SOONEST_POLL_SECONDS} or more, for the server "
                "keeps its answers that long"
            )
        if "://" not in self.lake:
            object.__setattr__(self, "lake", str(Path(self.lake).expanduser().absolute()))
        if self.images is None:
            object.__setattr__(self, "images", ("*",) if self.archive == EMBEDDED else ())
        _check_images_are_kept(self.images or (), self.collections)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the ``NBIA_*`` variables; an unset or empty one takes its default.

        ``NBIA_IMAGES`` alone tells empty (no images) from unset.

        Raises:
            SettingsError: a value is wrong, or a variable is a misspelling of a known one.
        """
        env = dict(os.environ if environ is None else environ)
        _refuse_misspelt(env)
        given: dict[str, object] = {}
        for variable in (
            "NBIA_ARCHIVE",
            "NBIA_API",
            "NBIA_USERNAME",
            "NBIA_PASSWORD",
            "NBIA_LAKE",
            "NBIA_CA_BUNDLE",
            "NBIA_CATALOGUE_CRON",
            "NBIA_RECONCILE_CRON",
        ):
            if env.get(variable):
                given[variable.removeprefix("NBIA_").lower()] = env[variable]
        if env.get("NBIA_COLLECTIONS"):
            given["collections"] = split_names(env["NBIA_COLLECTIONS"])
        if "NBIA_IMAGES" in env:
            given["images"] = split_names(env["NBIA_IMAGES"])
        if env.get("NBIA_POLL_SECONDS"):
            given["poll_seconds"] = _whole_number("NBIA_POLL_SECONDS", env["NBIA_POLL_SECONDS"])
        return cls(**given)  # type: ignore[arg-type]

    def mirrors_images_of(self, collection: str) -> bool:
        """Tell whether the images of `collection` are mirrored."""
        return bool(matching(self.images or (), [collection]))


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names or globs; blanks around a name are dropped."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def matching(patterns: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return those of `names`, in their order, that equal or match one of the glob `patterns`.

    Matching is case-sensitive, as the archive's counts and descriptions are.
    """
    wanted = list(patterns)
    return [n for n in names if any(n == p or fnmatch.fnmatchcase(n, p) for p in wanted)]


def unmatched(patterns: Iterable[str], names: Iterable[str]) -> dict[str, list[str]]:
    """Map each pattern that matches none of `names` to the names that look like it."""
    known = list(names)
    folded = {n.casefold(): n for n in known}
    return {
        p: [folded[c] for c in difflib.get_close_matches(p.casefold(), folded, n=3)]
        for p in patterns
        if not matching([p], known)
    }


def is_glob(pattern: str) -> bool:
    """Tell whether `pattern` holds a wildcard."""
    return any(c in pattern for c in "*?[")


def _whole_number(variable: str, text: str) -> int:
    if not text.strip().isdecimal():
        raise SettingsError(f"{variable} is {text!r}: set it to a whole number")
    return int(text)


def _check_archive(archive: str) -> None:
    if archive == EMBEDDED or archive in KNOWN_ARCHIVES:
        return
    if "@" in archive:  # wherever it stands: the value is not shown, for it may hold a password
        raise SettingsError("NBIA_ARCHIVE holds an account: put it into NBIA_USERNAME and NBIA_PASSWORD instead")
    if not _is_base_url(archive):
        names = ", ".join((EMBEDDED, *KNOWN_ARCHIVES))
        raise SettingsError(
            f"NBIA_ARCHIVE is {archive!r}: set it to {names}, or to a base URL that ends in /nbia-api, "
            "such as https://archive.example.org/nbia-api"
        )


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        known_port = parts.port is None or parts.port > 0
    except ValueError:  # a port or an address that cannot be
        return False
    return (
        known_port
        and parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and text.endswith("/nbia-api")
        and not parts.query
        and not parts.fragment
    )


def _check_account(username: str, password: str) -> None:
    if username == GUEST and password:
        raise SettingsError(
            f"NBIA_PASSWORD is set, but NBIA_USERNAME is the guest {GUEST}: name the account it belongs to"
        )
    if username != GUEST and not password:
        raise SettingsError(f"NBIA_USERNAME is {username!r}, but NBIA_PASSWORD is empty: set it too")


def _check_images_are_kept(images: tuple[str, ...], collections: tuple[str, ...]) -> None:
    for name in images:
        if not is_glob(name) and not matching(collections, [name]):
            raise SettingsError(
                f"NBIA_IMAGES names {name!r}, but NBIA_COLLECTIONS ({', '.join(collections)}) leaves it out: "
                "its images need its series table, so add it there too"
            )


def _refuse_misspelt(env: Mapping[str, str]) -> None:
    for variable in env:
        if variable.startswith("NBIA_") and variable not in VARIABLES:
            close = difflib.get_close_matches(variable, VARIABLES, n=1, cutoff=0.8)
            if close:
                raise SettingsError(f"{variable} is not a variable of nbia_pipeline: did you mean {close[0]}?")
