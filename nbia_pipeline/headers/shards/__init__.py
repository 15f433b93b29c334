"""The tables of headers in parts, by the series: what is stale in them, and how a part is made again.

A series is in the part of its UID. The four tables of a part are written together, the headers last; each file is
replaced at once, so that a reader finds a series in its older or its newer state, and once. Each file states which
series it holds, and in which version: whether a part is stale is known from the ends of its files, and only the files
of series that are new in it are read.

A collection has more parts only when all of its files are read again. Each part is then divided: the new ones are
written before the one whose rows they take, so that until then a reader finds these rows twice, and none is ever gone.
After a crash the next plan has the ones that are left.
"""

from nbia_pipeline.headers.shards.plan import Shard, bounded, plan_headers
from nbia_pipeline.headers.shards.state import shard_of
from nbia_pipeline.headers.shards.tables import ShardReport
from nbia_pipeline.headers.shards.write import remove_series, write_shard

__all__ = ["Shard", "ShardReport", "bounded", "plan_headers", "remove_series", "shard_of", "write_shard"]
