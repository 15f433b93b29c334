"""``python -m nbia_pipeline.embedded``: run an embedded archive."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from nbia_pipeline._version import __version__
from nbia_pipeline.embedded.catalog.model import Catalog
from nbia_pipeline.embedded.options import archive_options
from nbia_pipeline.embedded.server.run import Addresses, serve

_SWITCH_SECONDS = 0.0005


def run(options: Any) -> None:
    """Serve until stopped, as the options of a command say: see :func:`command`; the last three of them may lack."""
    record: Path | None = getattr(options, "record", None)
    catalog = _catalog(options.catalog, options.scale)

    def ready(addresses: Addresses) -> None:
        _show(addresses, as_json=getattr(options, "as_json", False))
        if record is not None:
            _write_record(record, addresses)
        if getattr(options, "render_ahead", False):
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


def _show(addresses: Addresses, *, as_json: bool) -> None:
    """Print where the archive is."""
    if as_json:
        print(json.dumps(asdict(addresses)), flush=True)
        return
    print(addresses.url, flush=True)
    if addresses.control_url is not None:
        print(f"control: {addresses.control_url}", flush=True)
        example = f"curl -X POST {addresses.control_url}/control/reset"
        print(f"use it: {example}  # the token in the address is for you only", flush=True)


@click.command("python -m nbia_pipeline.embedded", help=__doc__)
@click.option("--host", default="127.0.0.1", help="address to listen on")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="TCP port, 0 for any")
@archive_options
@click.option("--render-ahead", is_flag=True, help="make the images before they are asked for")
@click.option("--record", type=click.Path(path_type=Path), help="write address and lifeline here; stop when unneeded")
@click.option("--linger", type=float, default=10.0, help="seconds to outlive the last client")
def command(**given: Any) -> None:
    """Serve as the options say."""
    run(SimpleNamespace(**given))


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
    command()
