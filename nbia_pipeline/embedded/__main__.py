"""``python -m nbia_pipeline.embedded``: run an embedded archive."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from nbia_pipeline._version import __version__
from nbia_pipeline.embedded.catalogue import Catalogue
from nbia_pipeline.embedded.run import serve


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and serve until stopped.

    Args:
        arguments: words of the command line; None takes the process's own.
    """
    options = _parser().parse_args(arguments)
    catalogue = _catalogue(options.catalog, options.scale)
    record: Path | None = options.record
    # The server has stopped in good order by the time the interrupt arrives here.
    with contextlib.suppress(KeyboardInterrupt):
        serve(
            catalogue,
            options.host,
            options.port,
            ready=lambda url: print(url, flush=True),
            lifeline=record is not None,
            linger=options.linger,
            lifeline_ready=None if record is None else lambda url, port: _write_record(record, url, port),
            farewell=None if record is None else lambda: record.unlink(missing_ok=True),
            token_lifetime=options.token_lifetime,
            guide_spellings=options.guide_spellings,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nbia_pipeline.embedded", description=__doc__)
    parser.add_argument("--catalog", choices=("demo", "idc"), default="demo", help="what to serve")
    parser.add_argument("--scale", type=int, default=1, help="size of the demo catalogue")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="TCP port; 0 takes a free one")
    parser.add_argument("--token-lifetime", type=float, default=7200.0, help="seconds a token lives")
    parser.add_argument("--guide-spellings", action="store_true", help="spell keys as the guide does")
    parser.add_argument("--record", type=Path, help="write address and lifeline here; stop when unneeded")
    parser.add_argument("--linger", type=float, default=10.0, help="seconds to outlive the last client")
    return parser


def _catalogue(name: str, scale: int) -> Catalogue:
    """Return a catalogue by name; what the others need is not imported."""
    if name == "idc":
        from nbia_pipeline.embedded.idc import idc_catalogue

        return idc_catalogue()
    from nbia_pipeline.embedded.demo import demo_catalogue

    return demo_catalogue(scale)


def _write_record(path: Path, url: str, lifeline_port: int) -> None:
    """Write the record in one move, so that a reader never sees half of it."""
    facts = {"url": url, "lifeline_port": lifeline_port, "pid": os.getpid(), "version": __version__}
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(facts), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
