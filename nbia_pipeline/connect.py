"""Make a client of the archive that the settings name."""

from __future__ import annotations

from dataclasses import replace

from nbia_pipeline.archive import ArchiveUnreachable, ClientOptions, NbiaClient
from nbia_pipeline.settings import EMBEDDED, KNOWN_ARCHIVES, Settings


def connect(settings: Settings, options: ClientOptions | None = None) -> NbiaClient:
    """Return a client of the archive that the settings name; the caller closes it.

    The embedded archive is started unless a process of this user runs it already.

    Args:
        settings: which archive, which account, how many requests may be in flight, and how many bytes per second.
        options: how long to wait and how often to try.

    Raises:
        ArchiveUnreachable: the embedded archive cannot be started.
    """
    return NbiaClient(
        address_of(settings),
        api=settings.api,
        username=settings.username,
        password=settings.password,
        ca_bundle=settings.ca_bundle,
        options=limited(settings, options),
    )


def limited(settings: Settings, options: ClientOptions | None = None) -> ClientOptions:
    """Return options with the limits that the settings name: requests in flight, and bytes per second."""
    options = options or ClientOptions()
    return replace(options, max_in_flight=settings.max_in_flight, bwlimit=settings.bytes_per_second)


def address_of(settings: Settings) -> str:
    """Return the base URL of the archive that the settings name, which runs then if it is the embedded one.

    Raises:
        ArchiveUnreachable: it cannot be started.
    """
    if settings.archive == EMBEDDED:
        # Production imports the embedded archive only where it is asked for.
        from nbia_pipeline.embedded.launcher import EmbeddedArchiveError, ensure_running

        try:
            return ensure_running()
        except EmbeddedArchiveError as e:
            raise ArchiveUnreachable(" ".join(str(e).split())) from e
    return KNOWN_ARCHIVES.get(settings.archive, settings.archive)
