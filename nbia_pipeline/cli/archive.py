"""``nbia-pipeline archive``: the embedded archive by itself."""

from __future__ import annotations

import argparse

from nbia_pipeline.cli.home import fail
from nbia_pipeline.embedded.__main__ import run as serve
from nbia_pipeline.embedded.options import add_archive_options


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8042, help="port to listen on, 0 for any (default: %(default)s)")
    parser.add_argument("--catalog", choices=["demo", "idc"], default="demo", help="what to serve")
    parser.add_argument("--scale", type=int, default=1, help="size of the demo images: 1 is small, 100 is gigabytes")
    add_archive_options(parser)
    parser.set_defaults(record=None, render_ahead=False)


def run(options: argparse.Namespace) -> int:
    """Serve until Ctrl-C; 1 if the port is not available."""
    try:
        serve(options)
    except OSError as e:
        other = "--port" if options.control_port is None else "--port or --control-port"
        return fail(f"cannot listen on {options.host}:{options.port} ({e.strerror}): use another {other}")
    except ImportError as e:
        return fail(str(e))
    return 0
