"""The options of an embedded archive, for the two commands that start one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def archive_options(function: F) -> F:
    """Add the options to a command, which has ``host`` and ``port`` of its own."""
    port, seconds = click.IntRange(0, 65535), click.FloatRange(0)
    rate = click.FloatRange(0, min_open=True)
    declared = (
        click.option("--catalog", type=click.Choice(["demo", "idc"]), default="demo", help="what to serve"),
        click.option(
            "--scale",
            type=click.IntRange(1),
            default=1,
            metavar="N",
            help="size of the demo images: 1 is small, 100 is gigabytes",
        ),
        click.option(
            "--token-lifetime", type=float, default=7200.0, metavar="SECONDS", help="lifetime of tokens (default: 7200)"
        ),
        click.option("--guide-spellings", is_flag=True, help="spell keys as the guide does"),
        click.option(
            "--latency", type=seconds, default=0.0, metavar="SECONDS", help="before every answer (default: 0)"
        ),
        click.option("--bandwidth", type=rate, metavar="BYTES", help="per second of every answer (default: no limit)"),
        click.option(
            "--line", type=rate, metavar="BYTES", help="per second of all answers together (default: no limit)"
        ),
        click.option(
            "--control-port",
            type=port,
            metavar="PORT",
            help="port of the control interface on this machine, 0 for any (default: none)",
        ),
    )
    for add in reversed(declared):
        function = add(function)
    return function
