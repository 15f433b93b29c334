"""A lake with the demo, whose headers are read and whose references are resolved."""

from __future__ import annotations

import pytest

from nbia_pipeline.archive import NbiaClient
from nbia_pipeline.headers.graph.resolve import write_references
from nbia_pipeline.headers.shards import plan_headers, write_shard
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.engine import Mirror
from nbia_pipeline.reading.sql import write_catalog
from nbia_pipeline_tests.helpers.archives import FAST


@pytest.fixture(scope="session")
def read_demo(demo_archive: str, tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A lake, only to be read, of the collections of the demo that a guest sees, with all tables."""
    lake = Lake(str(tmp_path_factory.mktemp("read") / "lake"), fsync=False)
    with NbiaClient(demo_archive, options=FAST) as client:
        names = sorted(client.collection_values())
        for name in names:
            Mirror(client, lake).run(name)
    for name in names:
        for shard in plan_headers(lake, name):
            write_shard(lake, shard)
    for name in names:
        write_references(lake, name)
    write_catalog(lake)
    return lake
