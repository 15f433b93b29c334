"""The client of the control interface: change a running archive, and inject faults.

It needs requests only::

    from nbia_pipeline.embedded.control import Control, Fault

    control = Control("http://control:TOKEN@127.0.0.1:8043")  # as `nbia-pipeline archive` prints it
    uid = control.add_series("TCGA-DEMO", patient="NEW-1")
    control.hide(uid)
    control.faults(Fault("cut", endpoint="getImage", fraction=0.5, times=1))

The operations are described in :class:`nbia_pipeline.embedded.control.operations.Operations`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from collections.abc import Iterable, Mapping
from typing import Any

import requests

from nbia_pipeline.embedded.control.fault import Fault

__all__ = ["Control", "ControlError", "Day", "Fault", "Uids"]

PATH = "/control"
TIMEOUT_SECONDS = 60.0

Day = dt.date | dt.datetime | str
"""A day or a moment; a text is ISO 8601. A day stands for its midnight."""

Uids = str | Iterable[str]
"""UID of a series, or UIDs of several."""


class ControlError(RuntimeError):
    """The archive refused an operation; the text is the reason."""


class Control:
    """The control interface of an embedded archive that runs with ``--control-port``."""

    def __init__(self, url: str) -> None:
        """Take the address of the control port as the archive states it, with the token in it."""
        self.url = url.rstrip("/")
        self._session = requests.Session()
        # It is a port of this machine: no proxy is needed.
        self._session.trust_env = False

    def release(self, series: Uids, day: Day | None = None) -> None:
        """Make series visible and released; None: today."""
        self._do("release", series=series, day=day)

    def back_date(self, series: Uids, day: Day) -> None:
        """Change the day of release, and nothing else."""
        self._do("back_date", series=series, day=day)

    def hide(self, series: Uids, code: int = 2) -> None:
        """Hide series."""
        self._do("hide", series=series, code=code)

    def show(self, series: Uids) -> None:
        """Make hidden series visible."""
        self._do("show", series=series)

    def replace(self, series: Uids, hidden: bool = True, slices: int | None = None) -> None:
        """Give series new contents under the same UIDs."""
        self._do("replace", series=series, hidden=hidden, slices=slices)

    def delete(self, series: Uids) -> None:
        """Delete series physically."""
        self._do("delete", series=series)

    def edit(self, series: Uids, **columns: Any) -> None:
        """Change columns of series, like ``LicenseName="..."``."""
        self._do("edit", series=series, **columns)

    def annotate(self, series: str, files: Mapping[str, str]) -> None:
        """Give a series annotation files, text by name, instead of those that it has."""
        self._do("annotate", series=series, files=dict(files))

    def digests(self, uids: Uids, form: str | None) -> None:
        """Store the digests of series or images in another form: ``short``, ``blank``, ``null``, None for in full."""
        self._do("digests", uids=uids, form=form)

    def add_series(
        self,
        collection: str,
        like: str | None = None,
        patient: str | None = None,
        study: str | None = None,
        released: Day | None = None,
        visible: bool = True,
        slices: int | None = None,
        **columns: Any,
    ) -> str:
        """Add a series with files of its own, made like another one; return its UID."""
        given = {name: value for name, value in locals().items() if name not in ("self", "columns")}
        return str(self._do("add_series", **given, **columns))

    def series(self, collection: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of all series, of any visibility; times as ISO 8601."""
        return list(self._do("series", collection=collection))

    def add_collection(self, name: str, description: str = "", uri: str = "", restricted: bool = False) -> None:
        """Add a collection or change its description."""
        self._do("add_collection", name=name, description=description, uri=uri, restricted=restricted)

    def cart(self, name: str, series: Uids) -> None:
        """Share a cart of series under a name."""
        self._do("cart", name=name, series=series)

    def expire_tokens(self) -> None:
        """Expire every token now."""
        self._do("expire_tokens")

    def token_lifetime(self, seconds: float, refresh: float | None = None) -> None:
        """Set the lifetime of the tokens that are issued from now on."""
        self._do("token_lifetime", seconds=seconds, refresh=refresh)

    def now(self, moment: Day | None = None) -> str:
        """Set the server's clock, or let it follow the real one; return its time."""
        return str(self._do("now", moment=moment))

    def latency(self, seconds: float) -> None:
        """Delay the beginning of every answer."""
        self._do("latency", seconds=seconds)

    def bandwidth(self, bytes_per_second: float | None = None) -> None:
        """Limit how fast every answer is sent; None: as fast as possible."""
        self._do("bandwidth", bytes_per_second=bytes_per_second)

    def line(self, bytes_per_second: float | None = None) -> None:
        """Limit how fast all answers together are sent, in equal shares; None: as fast as possible."""
        self._do("line", bytes_per_second=bytes_per_second)

    def faults(self, *faults: Fault, seed: int = 0) -> None:
        """Set the faults of the requests from now on; without any, there are none."""
        self._do("faults", faults=[dataclasses.asdict(fault) for fault in faults], seed=seed)

    def guide_spellings(self, on: bool) -> None:
        """Write the guide's spellings of keys, or the server's."""
        self._do("guide_spellings", on=on)

    def history(self, builds: Iterable[str]) -> None:
        """Answer like older builds of the server: ``no data``, ``undated``, ``time stamp``."""
        self._do("history", builds=list(builds))

    def requests(self, clear: bool = False) -> list[dict[str, Any]]:
        """Return the requests so far: method, path, endpoint, query, status, bytes, seconds, fault."""
        return list(self._do("requests", clear=clear))

    def events(self) -> list[dict[str, Any]]:
        """Return the changes so far, in order: time, action, series, columns."""
        return list(self._do("events"))

    def reset(self) -> None:
        """Undo everything."""
        self._do("reset")

    def _do(self, operation: str, **arguments: Any) -> Any:
        body = json.dumps(arguments, default=plain)
        answer = self._session.post(f"{self.url}{PATH}/{operation}", body, timeout=TIMEOUT_SECONDS)
        content = answer.json()
        if answer.status_code != 200:
            raise ControlError(content["error"])
        return content["result"]


def plain(value: dt.date | Iterable[Any]) -> str | list[Any]:
    """Return days and moments as ISO 8601, UIDs as a list."""
    return value.isoformat() if isinstance(value, dt.date) else list(value)
