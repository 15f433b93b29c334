"""``nbia-pipeline archive``: the embedded archive by itself."""

from __future__ import annotations

import click

from nbia_pipeline.cli.home import OUTPUT, fail
from nbia_pipeline.cli.options import Options, as_command, option
from nbia_pipeline.embedded.__main__ import run as serve
from nbia_pipeline.embedded.options import archive_options


@as_command()
@option("--host", default="127.0.0.1", metavar="HOST", help="address to listen on (default: 127.0.0.1)")
@option(
    "--port", type=click.IntRange(0, 65535), default=8042, metavar="PORT", help="its port, 0 for any (default: 8042)"
)
@archive_options
def command(options: Options) -> int:
    """Serve the embedded archive until Ctrl-C, and print its address.

    --json prints the addresses as one JSON document when it is ready. --archive and --lake have no meaning here.
    """
    try:
        serve(options)
    except OSError as e:
        other = "--port" if options.control_port is None else "--port or --control-port"
        return fail(f"cannot listen on {options.host}:{options.port} ({e.strerror}): use another {other}")
    except ImportError as e:
        return fail(str(e))
    OUTPUT.json = False  # its document was printed when it was ready
    return 0
