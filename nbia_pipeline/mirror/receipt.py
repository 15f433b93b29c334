"""The receipt: the outcome of one series, as a row of the tables and as an entry of the journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline import clock
from nbia_pipeline.lake.layout import series_path
from nbia_pipeline.lake.table_file import Rows, rows_where
from nbia_pipeline.mirror.series import NO_NEWER, Columns, WantedSeries, expect_types, refresh_failed
from nbia_pipeline.mirror.unpack import VerifiedInstance
from nbia_pipeline.schema.arrow import among
from nbia_pipeline.schema.digests import series_md5
from nbia_pipeline.schema.status import COMPLETE, QUARANTINED, UNAVAILABLE

MD5 = "md5"
"""Each file has the MD5 that the archive has of it; it listed these instances, or has the same digest of the series."""
MD5_AND_FIGURES = "md5+count+size"
"""Each file has the MD5 that the archive has of it, and together they have its ImageCount and FileSize."""
COUNT_AND_SIZE = "count+size"
"""The archive has no digests; the files have its ImageCount and FileSize."""
BY_DIGESTS = (MD5, MD5_AND_FIGURES)

REFERENCED = "referenced by "
"""How the Reason of a complete series begins that was fetched because another one refers to it."""
MAY_REFER = "may refer to "
"""How that of a series of annotations begins that was fetched to read whether it refers to the images of a patient."""

# What earlier versions wrote where a text came instead of a zip: now that is a BadAnswer, and no outcome of a series.
# Of a zip that is damaged further in, the bytes shown there are no text.
_TEXT_FOR_A_ZIP = r"""is (no|not a) zip: b['"](\\xef\\xbb\\xbf|([ -\[\]-~]|\\[nrt]){4})"""

_KEYS_OF_0_1 = {"healed": "repaired", "proof": "verified_by"}


@dataclass(frozen=True)
class Receipt:
    """The outcome of one series.

    Attributes:
        wanted: the series as it was listed when it was fetched.
        status: ``complete``, ``unavailable`` or ``quarantined``.
        attempts: how many downloads it took.
        instances: the verified files; none unless complete.
        reason: why it is not complete; of a complete one, for whom it was fetched, if a reference led to it.
        repaired: instances that were fetched one by one.
        verified_by: how the files were verified: :data:`MD5`, :data:`MD5_AND_FIGURES` or :data:`COUNT_AND_SIZE`.
        fetched_at: when (UTC, without a zone).
    """

    wanted: WantedSeries
    status: str
    attempts: int
    instances: list[VerifiedInstance] = field(default_factory=list)
    reason: str | None = None
    repaired: int = 0
    verified_by: str = MD5
    fetched_at: datetime = field(default_factory=lambda: clock.utc_now())

    @cached_property
    def path(self) -> str:
        """Directory of the series' files, relative to the lake."""
        w = self.wanted
        return series_path(w.Collection, w.PatientID, w.StudyInstanceUID, w.SeriesInstanceUID)

    def row(self) -> dict[str, Any]:
        """Return the row of ``image_series``."""
        complete = self.status == COMPLETE
        return {
            **vars(self.wanted),
            "Status": self.status,
            "Bytes": sum(i.Size for i in self.instances) if complete else None,
            "SeriesMD5": series_md5([i.MD5 for i in self.instances]) if complete else None,
            "FetchedAt": self.fetched_at,
            "Attempts": self.attempts,
            "Healed": self.repaired,
            "Proof": self.verified_by if complete else None,
            "Reason": self.reason,
            **NO_NEWER,
            "Path": self.path if complete else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, for the journal."""
        return {
            **{field: getattr(self, field) for field in self.__dataclass_fields__},  # asdict would copy all of it
            "wanted": self.wanted.to_json(),
            "instances": [dict(vars(i)) for i in self.instances],
            "fetched_at": self.fetched_at.isoformat(),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Receipt:
        """Return what :meth:`to_json` was made of, by this version or by 0.1.0.

        Raises:
            ValueError, TypeError, LookupError: it was made of something else.
        """
        return expect_types(
            cls(
                **{
                    **{_KEYS_OF_0_1.get(name, name): value for name, value in values.items()},
                    "wanted": WantedSeries.from_json(values["wanted"]),
                    "instances": [expect_types(VerifiedInstance(**i)) for i in values["instances"]],
                    "fetched_at": datetime.fromisoformat(values["fetched_at"]),
                }
            )
        )


def fault_of_the_way(receipts: Columns) -> pa.ChunkedArray:
    """Return for each receipt whether a page of a proxy, or the like, is why its series was not fetched."""
    return pc.fill_null(pc.match_substring_regex(receipts["Reason"], _TEXT_FOR_A_ZIP), False)


def says_for_whom(receipts: Columns) -> pa.ChunkedArray:
    """Return for each receipt whether its Reason is no problem, but states whose references led to its series."""
    begins = (pc.starts_with(receipts["Reason"], text) for text in (REFERENCED, MAY_REFER))
    return pc.fill_null(pc.or_(*begins), False)


def problem_rows(receipts: Rows) -> list[dict[str, str]]:
    """Return the series that could not be fetched, or not in their newest version, with the reason."""
    refused = among(receipts["Status"], [QUARANTINED, UNAVAILABLE])
    which = pc.or_(refused, refresh_failed(receipts))
    rows = rows_where(receipts, which, ["SeriesInstanceUID", "Status", "Reason"]).to_pylist()
    return [{"series": r["SeriesInstanceUID"], "what": f"{r['Status']}: {r['Reason']}"} for r in rows]
