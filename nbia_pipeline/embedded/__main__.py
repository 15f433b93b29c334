"""``python -m nbia_pipeline.embedded``: run an embedded archive."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from nbia_pipeline._version import __version__
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.options import add_archive_options
from nbia_pipeline.embedded.server.run import Addresses, serve

_SWITCH_SECONDS = 0.0005


def run(options: argparse.Namespace) -> None:
    """Serve as the options say until stopped; see :func:`_parser` for them."""
    record: Path | None = options.record
    catalog = _catalog(options.catalog, options.scale)

    def ready(addresses: Addresses) -> None:
        print(addresses.url, flush=True)
        if addresses.control_url is not None:
            print(f"control: {addresses.control_url}", flush=True)
            example = f"curl -X POST {addresses.control_url}/control/reset"
            print(f"use it: {example}  # the token in the address is for you only", flush=True)
        if record is not None:
            _write_record(record, addresses)
        if options.render_ahead:
            threading.Thread(target=_render, args=(catalog,), name="render-ahead", daemon=True).start()

    # The server has shut down properly by the time the interrupt arrives here.
    with contextlib.suppress(KeyboardInterrupt):
        serve(
            catalog,
            options.host,
            options.port,
            ready=ready,
            control_port=options.control_port,
            linger=None if record is None else options.linger,
            farewell=lambda: record.unlink(missing_ok=True) if record else None,
            token_lifetime=options.token_lifetime,
            guide_spellings=options.guide_spellings,
            latency=options.latency,
            bandwidth=options.bandwidth,
            line=options.line,
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nbia_pipeline.embedded", description=__doc__)
    parser.add_argument("--catalog", choices=("demo", "idc"), default="demo", help="what to serve")
    parser.add_argument("--scale", type=int, default=1, help="size of the demo catalog")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="TCP port, 0 for any")
    add_archive_options(parser)
    parser.add_argument("--render-ahead", action="store_true", help="make the images before they are asked for")
    parser.add_argument("--record", type=Path, help="write address and lifeline here; stop when unneeded")
    parser.add_argument("--linger", type=float, default=10.0, help="seconds to outlive the last client")
    return parser


def _catalog(name: str, scale: int) -> Catalog:
    """Return a catalog by name; only its own modules are imported."""
    if name == "idc":
        from nbia_pipeline.embedded.demo.idc import idc_catalog

        return idc_catalog()
    from nbia_pipeline.embedded.demo.catalog import demo_catalog

    return demo_catalog(scale)


def _render(catalog: Catalog) -> None:
    """Make all images with their digests, as many as the store keeps; requests need not wait for the whole of one."""
    if catalog.images is None:
        return
    usual = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    for uid in catalog.series["SeriesInstanceUID"].to_pylist():
        for instance in catalog.images.instances(uid):
            catalog.md5(uid, instance.sop_instance_uid)
    sys.setswitchinterval(usual)


def _write_record(path: Path, addresses: Addresses) -> None:
    """Write the record of the server in one step: a reader never sees a part of it."""
    record = {**asdict(addresses), "pid": os.getpid(), "version": __version__}
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(record), encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    run(_parser().parse_args())
