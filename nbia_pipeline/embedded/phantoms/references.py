"""How a file names the instances that it describes: the sequences that several kinds of objects share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeAlias

from pydicom.dataset import Dataset

from nbia_pipeline.embedded.phantoms.dicom_files import SeriesPlan, fill

Named: TypeAlias = Sequence[tuple[SeriesPlan, Sequence[int]]]
"""Series with the instances (from 0) that are named; those of one study follow each other."""


def item(**values: object) -> Dataset:
    """Return an item of a sequence with attributes by keyword."""
    return fill(Dataset(), **values)


def reference(series: SeriesPlan, index: int, **more: object) -> Dataset:
    """Return a reference to instance `index` (from 0): (0008,1150), (0008,1155), and attributes by keyword."""
    return item(ReferencedSOPClassUID=series.sop_class, ReferencedSOPInstanceUID=series.sop_instance(index), **more)


def source_of(plan: SeriesPlan) -> SeriesPlan:
    """Return the images that a series describes.

    Raises:
        ValueError: it is one of images itself.
    """
    if plan.source is None:
        raise ValueError(f"the {plan.modality} series {plan.uid} has no images that it describes")
    return plan.source


def described(plan: SeriesPlan) -> list[SeriesPlan]:
    """Return the series of images that a segmentation is drawn on."""
    others = () if plan.flaw == "wrong series" else plan.others
    return [source_of(plan), *others]


def at_the_same_place(images: SeriesPlan, index: int, other: SeriesPlan) -> int:
    """Return the instance of `other` (from 0) at the place of slice `index` of `images`: both have one extent."""
    return (2 * index + 1) * other.geometry.slices // (2 * images.geometry.slices)


def by_study(named: Named, keyword: str, wrong: str | None = None) -> Iterator[tuple[str, list[Dataset]]]:
    """Yield each study with the items of its series, whose instances are under `keyword`.

    Args:
        named: what is named.
        keyword: ReferencedInstanceSequence and the like.
        wrong: a SeriesInstanceUID to state instead of the true ones.
    """
    for study, members in groupby(named, key=lambda one: str(one[0].row["StudyInstanceUID"])):
        yield (
            study,
            [
                item(SeriesInstanceUID=wrong or series.uid, **{keyword: [reference(series, i) for i in indices]})
                for series, indices in members
            ],
        )


def common_references(plan: SeriesPlan, named: Named) -> dict[str, object]:
    """Return the Common Instance Reference module (DICOM part 3, C.12.2): own study and others apart."""
    wrong = plan.others[0].uid if plan.flaw == "wrong series" else None
    studies = dict(by_study(named, "ReferencedInstanceSequence", wrong))
    own = studies.pop(str(plan.row["StudyInstanceUID"]), [])
    others = [item(StudyInstanceUID=study, ReferencedSeriesSequence=series) for study, series in studies.items()]
    found = {"ReferencedSeriesSequence": own, "StudiesContainingOtherReferencedInstancesSequence": others}
    return {keyword: items for keyword, items in found.items() if items}


def evidence(named: Named) -> list[Dataset]:
    """Return the items of CurrentRequestedProcedureEvidenceSequence (0040,A375) of a document (C.17.2)."""
    return [
        item(StudyInstanceUID=study, ReferencedSeriesSequence=series)
        for study, series in by_study(named, "ReferencedSOPSequence")
    ]
