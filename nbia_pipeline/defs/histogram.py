"""How large the series are, as a small table with bars."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

MEGABYTE = 1_000_000
BOUNDS = tuple(n * MEGABYTE for n in (1, 3, 10, 30, 100, 300, 1000, 3000))
"""Sizes in bytes at which the classes part."""

LABELS = (
    "below 1 MB",
    "1 to 3 MB",
    "3 to 10 MB",
    "10 to 30 MB",
    "30 to 100 MB",
    "100 to 300 MB",
    "0.3 to 1 GB",
    "1 to 3 GB",
    "3 GB and more",
)
BAR = 30


def size_classes(sizes: Iterable[int]) -> list[int]:
    """Return how many sizes (bytes) fall into each class."""
    counts = [0] * len(LABELS)
    for size in sizes:
        counts[bisect_right(BOUNDS, size)] += 1
    return counts


def histogram(held: Sequence[int], fetched: Sequence[int]) -> str:
    """Return a table in Markdown: a line for each class from the smallest to the largest that occurs.

    Args:
        held: series in the lake, by class.
        fetched: series that this run fetched, by class.
    """
    used = [n for n, counts in enumerate(zip(held, fetched, strict=True)) if any(counts)]
    lines = ["| series of | in the lake | fetched now | |", "|---|---:|---:|:---|"]
    for n in range(used[0], used[-1] + 1) if used else ():
        bar = "█" * -(-BAR * held[n] // max(*held, 1))
        lines.append(f"| {LABELS[n]} | {held[n]:,} | {fetched[n]:,} | {bar} |")
    return "\n".join(lines)
