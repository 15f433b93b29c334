"""The options of an embedded archive, for the two commands that start one."""

from __future__ import annotations

import argparse


def add_archive_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser of a command."""
    parser.add_argument(
        "--token-lifetime", type=float, default=7200.0, help="lifetime of tokens in seconds (default: 7200)"
    )
    parser.add_argument("--guide-spellings", action="store_true", help="spell keys as the guide does")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before every answer (default: 0)")
    parser.add_argument("--bandwidth", type=float, help="bytes per second of every answer (default: no limit)")
    parser.add_argument("--line", type=float, help="bytes per second of all answers together (default: no limit)")
    parser.add_argument(
        "--control-port", type=int, help="port of the control interface on this machine, 0 for any (default: none)"
    )
