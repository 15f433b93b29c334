"""``python -m nbia_pipeline.embedded``: run an embedded archive."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from nbia_pipeline._version import __version__
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.options import add_archive_options
from nbia_pipeline.embedded.server.run import serve


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and serve until stopped.

    Args:
        arguments: words of the command line; None takes the process's own.
    """
    options = _parser().parse_args(arguments)
    catalog = _catalogue(options.catalog, options.scale)
    record: Path | None = options.record
    doors: dict[str, str] = {}
    # The server has stopped in good order by the time the interrupt arrives here.
    with contextlib.suppress(KeyboardInterrupt):
        serve(
            catalog,
            options.host,
            options.port,
            ready=lambda url: _announce(url, doors),
            control_port=options.control_port,
            control_ready=lambda url: doors.update(control_url=url),
            lifeline=record is not None,
            linger=options.linger,
            lifeline_ready=None if record is None else lambda url, port: _write_record(record, url, port, doors),
            farewell=None if record is None else lambda: record.unlink(missing_ok=True),
            token_lifetime=options.token_lifetime,
            guide_spellings=options.guide_spellings,
            latency=options.latency,
            bandwidth=options.bandwidth,
        )


def _announce(url: str, doors: dict[str, str]) -> None:
    """Print the base URL, and behind it the address of the control interface if there is one."""
    print(url, flush=True)
    if "control_url" in doors:
        print(f"control: {doors['control_url']}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nbia_pipeline.embedded", description=__doc__)
    parser.add_argument("--catalog", choices=("demo", "idc"), default="demo", help="what to serve")
    parser.add_argument("--scale", type=int, default=1, help="size of the demo catalogue")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 takes a free one")
    add_archive_options(parser)
    parser.add_argument("--record", type=Path, help="write address and lifeline here; stop when unneeded")
    parser.add_argument("--linger", type=float, default=10.0, help="seconds to outlive the last client")
    return parser


def _catalogue(name: str, scale: int) -> Catalog:
    """Return a catalogue by name; what the others need is not imported."""
    if name == "idc":
        from nbia_pipeline.embedded.demo.idc import idc_catalog

        return idc_catalog()
    from nbia_pipeline.embedded.demo.catalog import demo_catalog

    return demo_catalog(scale)


def _write_record(path: Path, url: str, lifeline_port: int, doors: dict[str, str]) -> None:
    """Write the record in one move, so that a reader never sees half of it."""
    facts = {"url": url, "lifeline_port": lifeline_port, "pid": os.getpid(), "version": __version__, **doors}
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(facts), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
