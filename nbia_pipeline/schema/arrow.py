"""Helpers for Arrow tables that more than one room needs."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def first_of_each(table: pa.Table, *key: str) -> pa.Table:
    """Return the first row of each value of `key`: the server repeats some (reference: trap 38)."""
    numbered = table.select(list(key)).append_column("__row", pa.array(range(table.num_rows), pa.int64()))
    firsts = numbered.group_by(list(key)).aggregate([("__row", "min")])["__row_min"]
    return table if len(firsts) == table.num_rows else table.take(pc.take(firsts, pc.sort_indices(firsts)))
