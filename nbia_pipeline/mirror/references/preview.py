"""What a run would fetch because of references, as far as the lake knows: nothing is asked, fetched or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.changes.present import present_series
from nbia_pipeline.lake import Lake
from nbia_pipeline.mirror.references.closure import MODALITIES, Closure, selected
from nbia_pipeline.mirror.references.edges import UID
from nbia_pipeline.mirror.selection import Selection, Selections
from nbia_pipeline.mirror.series import WantedSeries, wanted_series
from nbia_pipeline.schema.arrow import among


@dataclass
class Foreseen:
    """What references lead to, as far as the lake knows.

    Attributes:
        series: what is known to be fetched besides what is selected, by UID.
        there: how many series that are referred to are in the lake.
        unread: the series of annotations that are not in the lake: what they refer to is known when they are read.
        unlisted: the UIDs of series and instances that no table lists, with the series that refers to each: the
            archive will be asked.
    """

    series: dict[str, WantedSeries] = field(default_factory=dict)
    there: int = 0
    unread: set[str] = field(default_factory=set)
    unlisted: dict[str, str] = field(default_factory=dict)


def foresee(
    lake: Lake, collections: Sequence[str], selection: Selection, selections: Selections, kinds: Sequence[str]
) -> Foreseen:
    """Return what references of selected series lead to, by the files and tables in the lake.

    Args:
        lake: the lake.
        collections: exact spelling.
        selection: which of their series are selected by the run.
        selections: which are by the configuration.
        kinds: ``images``, ``annotations``, or both.

    Raises:
        LakeError: the lake cannot be read.
    """
    begin = selected(lake, collections, selection, selections)
    preview = _Preview(lake)
    patients: set[str] = set()
    for collection in collections:
        rows = selection.apply(selections.wanted(lake, collection, present_series(lake, collection)))
        patients.update(rows["PatientID"].to_pylist())
        preview.unread.update(rows[UID].filter(among(rows["Modality"], MODALITIES)).to_pylist())
    preview.unread.difference_update(one.SeriesInstanceUID for one in begin)
    own = set(preview.unread)
    preview.follow(begin, kinds, patients)
    besides = {uid: one for uid, one in preview.series.items() if uid not in own}
    return Foreseen(besides, preview.there, preview.unread, preview.finder.lost)


class _Preview(Closure):
    def __init__(self, lake: Lake) -> None:
        super().__init__(lake, None)
        self.series: dict[str, WantedSeries] = {}
        self.unread: set[str] = set()

    def take(self, rows: pa.Table, reasons: Mapping[str, str]) -> list[str]:
        """Note what is not in the lake."""
        held = self.finder.locate(rows[UID].to_pylist())
        self.there += len(held)
        away = rows.filter(pc.invert(among(rows[UID], held)))
        self.series.update({one.SeriesInstanceUID: one for one in wanted_series(away)})
        self.unread.update(away[UID].filter(among(away["Modality"], MODALITIES)).to_pylist())
        return []
