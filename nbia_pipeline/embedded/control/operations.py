"""Changes of a running archive: the operations of the control interface, callable in-process.

``app.state.archive.control`` is the :class:`Operations` of an application. Over HTTP the same operations
are those of :class:`nbia_pipeline.embedded.control.client.Control`.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.api.endpoint import HISTORY, Settings
from nbia_pipeline.embedded.catalog.holdings import ANY_VISIBILITY, DEFAULTS, Holdings, filled_in
from nbia_pipeline.embedded.catalog.model import CATALOG_SCHEMA, DIGESTS, VISIBLE, CollectionDescription
from nbia_pipeline.embedded.control.client import Day, Uids
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.line import Line
from nbia_pipeline.embedded.control.traffic import Traffic
from nbia_pipeline.embedded.control.values import OperationError as OperationError
from nbia_pipeline.embedded.control.values import checked_values, expect_known, listed, moment_of
from nbia_pipeline.embedded.phantoms.dicom_files import uid_of
from nbia_pipeline.embedded.phantoms.overlay import DRAWABLE, cloned, revised
from nbia_pipeline.embedded.phantoms.store import PhantomStore
from nbia_pipeline.schema.arrow import with_column

NOT_VISIBLE = 2
_NOT_REVIEWED = 0
# Up to this many rows are removed one by one, more by a filter.
_MOST_GAPS = 8


class Tokens(Protocol):
    """The tokens of an archive, as far as operations change them."""

    lifetime: float
    refresh_lifetime: float

    def expire_all(self) -> None:
        """Expire every token now."""


class Operations:
    """Changes of one archive. All methods may be called from several threads.

    Every change is one step for those who ask the archive: they see the state before it or after it.
    """

    def __init__(
        self,
        holdings: Holdings,
        tokens: Tokens,
        settings: Settings,
        traffic: Traffic,
        forget: Callable[[Iterable[str] | None], None],
    ) -> None:
        """Take the parts of the archive.

        `forget` is called after a change with the names of the collections whose answers are out of date, or None
        for all of them.
        """
        self._holdings = holdings
        self._tokens = tokens
        self._settings = settings
        self._traffic = traffic
        self._forget = forget
        self._first = holdings.catalog
        self._first_guide = settings.guide_spellings
        self._first_lifetimes = tokens.lifetime, tokens.refresh_lifetime
        self._lock = threading.RLock()
        self._now: dt.datetime | None = None
        self._added = 0
        self._events: list[dict[str, Any]] = []
        self._images: PhantomStore | None = None

    # --- series

    def release(self, series: Uids, day: Day | None = None) -> None:
        """Make series visible and released; `day` is DateReleased, None the present day of the server's clock."""
        self._edit("release", series, {"Visibility": VISIBLE, "DateReleased": self._day(day), "ReleasedStatus": "Yes"})

    def back_date(self, series: Uids, day: Day) -> None:
        """Change the day of release, and nothing else."""
        self._edit("back_date", series, {"DateReleased": self._day(day)})

    def hide(self, series: Uids, code: int = NOT_VISIBLE) -> None:
        """Hide series: they disappear from the lists without any other sign; `code` is that of the visibility."""
        self._edit("hide", series, {"Visibility": code})

    def show(self, series: Uids) -> None:
        """Make hidden series visible: only their visibility changes, not the day of release."""
        self._edit("show", series, {"Visibility": VISIBLE})

    def replace(self, series: Uids, hidden: bool = True, slices: int | None = None) -> None:
        """Give series new contents under the same UIDs: other pixels and digests, the present TimeStamp.

        Args:
            series: which ones. Without files (as in the catalog idc) only the TimeStamp changes.
            hidden: whether this hides them, as on the server; :meth:`show` makes them visible again.
            slices: number of slices from now on; None: as many as before, and the same FileSize.

        Raises:
            OperationError: the images are not phantoms.
        """
        hiding = {"Visibility": _NOT_REVIEWED} if hidden else {}
        with self._lock:
            for uid in self._checked(series):
                changes = {"TimeStamp": self._later(uid), **self._replaced(uid, slices), **hiding}
                self._apply("replace", [uid], changes, contents=[uid])

    def delete(self, series: Uids) -> None:
        """Delete series physically: row and files are gone."""
        with self._lock:
            uids = self._checked(series)
            slices = {name: _without(rows, mask) for name, rows, mask in self._touched(uids)}
            self._swap("delete", uids, slices, {})

    def edit(self, series: Uids, **columns: Any) -> None:
        """Change columns of series: license, description, site, anything but their UID; no date moves.

        `columns` are new values by column of the catalog, like ``LicenseName="..."``; None empties one.
        """
        self._edit("edit", series, columns)

    def add_series(
        self,
        collection: str,
        like: str | None = None,
        patient: str | None = None,
        study: str | None = None,
        released: Day | None = None,
        visible: bool = True,
        slices: int | None = None,
        **columns: Any,
    ) -> str:
        """Add a series with files of its own, made like another one.

        Args:
            collection: name of its collection, which may be new.
            like: UID of the series whose columns it copies; None: the first of the collection, or else of all.
            patient: PatientID; None: that of the other.
            study: StudyInstanceUID to put it into; None: a new study.
            released: DateReleased; None: the present day of the server's clock.
            visible: False for a series that is not reviewed yet and has no day of release.
            slices: number of slices; None: as many as the other, or 6 where that has no files.
            columns: values by column of the catalog.

        Returns:
            Its SeriesInstanceUID.
        """
        with self._lock:
            template = self._template(collection, like)
            self._added += 1
            uid = uid_of("added", collection, self._added)
            row = {
                **template,
                "AnnotationSize": 0,
                "SeriesInstanceUID": uid,
                "StudyInstanceUID": study or uid_of("added study", collection, self._added),
                "Collection": collection,
                "TimeStamp": self.clock(),
                "DateReleased": self._day(released) if visible else None,
                "ReleasedStatus": "Yes" if visible else "No",
                "Visibility": VISIBLE if visible else _NOT_REVIEWED,
                **({} if patient is None else {"PatientID": patient, "PatientName": patient}),
                **checked_values(columns),
            }
            row = self._with_files(template["SeriesInstanceUID"], row, slices)
            added = filled_in(pa.Table.from_pylist([row], schema=CATALOG_SCHEMA))
            changed = {collection: pa.concat_tables([self._holdings.rows_of(collection), added])}
            self._swap("add_series", [uid], changed, row, contents=[uid])
            return uid

    def series(self, collection: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of all series of a collection, or of all, whatever their visibility and the rights."""
        names = self._holdings.collections() if collection is None else [collection]
        return [row for name in names for row in self._holdings.rows_of(name).to_pylist()]

    def annotate(self, series: str, files: Mapping[str, str]) -> None:
        """Give a series annotation files, text by name, instead of those that it has; AnnotationSize follows."""
        contents = {name: text.encode() for name, text in files.items()}
        with self._lock:
            (uid,) = self._checked(series)
            annotations = {**self._holdings.catalog.annotations, uid: contents}
            size = sum(map(len, contents.values()))
            self._apply("annotate", [uid], {"AnnotationSize": size}, annotations=annotations)

    def digests(self, uids: Uids, form: str | None) -> None:
        """Store the digests of series, or of single images, in another form.

        Args:
            uids: SeriesInstanceUIDs or SOPInstanceUIDs.
            form: ``short`` without leading zeros, ``blank``, ``null``, or None for in full.

        Raises:
            OperationError: an unknown form.
        """
        with self._lock:
            named = listed(uids)
            others = {uid: f for uid, f in self._holdings.catalog.digests.items() if uid not in named}
            changed = {} if form is None else dict.fromkeys(named, *expect_known([form], DIGESTS, "form of a digest"))
            self._swap("digests", named, {}, {"form": form}, digests={**others, **changed})

    # --- collections and carts

    def add_collection(self, name: str, description: str = "", uri: str = "", restricted: bool = False) -> None:
        """Add a collection or change its description; it is listed once it has a visible series.

        Args:
            name: its exact spelling.
            description: HTML.
            uri: address of its DOI.
            restricted: whether only accounts with rights to it see it.
        """
        with self._lock:
            edited = int(self.clock().replace(tzinfo=dt.timezone.utc).timestamp() * 1000)
            catalog = self._holdings.catalog
            others = catalog.restricted - {name}
            self._swap(
                "add_collection",
                [],
                {name: self._holdings.rows_of(name)},
                {"collection": name, "description": description, "uri": uri, "restricted": restricted},
                descriptions={**catalog.descriptions, name: CollectionDescription(name, description, uri, edited)},
                restricted=others | {name} if restricted else others,
            )

    def cart(self, name: str, series: Uids) -> None:
        """Share a cart of series under a name; an existing one of that name is replaced."""
        with self._lock:
            carts = {**self._holdings.catalog.carts, name: tuple(listed(series))}
            self._swap("cart", carts[name], {}, {"name": name}, carts=carts)

    # --- tokens

    def expire_tokens(self) -> None:
        """Expire every token now."""
        self._tokens.expire_all()

    def token_lifetime(self, seconds: float, refresh: float | None = None) -> None:
        """Set the lifetime of the access and refresh tokens that are issued from now on; None: the same for both."""
        self._tokens.lifetime = seconds
        self._tokens.refresh_lifetime = seconds if refresh is None else refresh

    # --- the way the server answers

    def now(self, moment: Day | None = None) -> str:
        """Set the server's clock, which then stands still, or let it follow the real one again; return its time.

        It sets TimeStamp and DateReleased of later changes; tokens and waits follow the real clock.
        """
        self._now = None if moment is None else moment_of(moment)
        return self.clock().isoformat()

    def latency(self, seconds: float) -> None:
        """Delay the beginning of every answer."""
        self._traffic.latency = seconds

    def bandwidth(self, bytes_per_second: float | None = None) -> None:
        """Limit how fast every answer is sent; None: as fast as possible."""
        self._traffic.bandwidth = bytes_per_second

    def line(self, bytes_per_second: float | None = None) -> None:
        """Limit how fast all answers together are sent, in equal shares; None: as fast as possible."""
        self._traffic.line = Line(bytes_per_second) if bytes_per_second else None

    def faults(self, *faults: Fault, seed: int = 0) -> None:
        """Set the faults of the requests from now on; the first that applies wins; without any, there are none.

        `seed` is that of the probabilities.
        """
        self._traffic.plan(faults, seed)

    def guide_spellings(self, on: bool) -> None:
        """Write the guide's spellings of keys where they differ from the server's, or stop doing so."""
        self._settings.guide_spellings = on

    def history(self, builds: Iterable[str]) -> None:
        """Answer like older builds of the server: ``no data``, ``undated``, ``time stamp``; none of them by default.

        Raises:
            OperationError: an unknown name.
        """
        self._settings.history = frozenset(expect_known(builds, HISTORY, "build"))

    def requests(self, clear: bool = False) -> list[dict[str, Any]]:
        """Return the requests so far, and forget them if `clear`.

        Each has method, path, endpoint, query, status, bytes, seconds and fault.
        """
        return self._traffic.requests(clear)

    def events(self) -> list[dict[str, Any]]:
        """Return the changes so far, in order: time, action, series, columns."""
        with self._lock:
            return [dict(event) for event in self._events]

    def reset(self) -> None:
        """Undo everything: the catalog, tokens, faults, clock, spellings and records of the start."""
        with self._lock:
            self._traffic.reset()
            self._tokens.expire_all()
            self._tokens.lifetime, self._tokens.refresh_lifetime = self._first_lifetimes
            self._settings.guide_spellings = self._first_guide
            self._settings.history = frozenset()
            self._settings.downloads.clear()
            changed, self._events, self._added, self._now = bool(self._events), [], 0, None
            if changed:
                self._images = None
                self._holdings.refresh(self._first)
                self._forget(None)

    def clock(self) -> dt.datetime:
        """Return the time of the server, which has no zone."""
        return self._now or dt.datetime.now().replace(microsecond=0)  # noqa: DTZ005 - the server's times are naive

    # --- implementation

    def _day(self, day: Day | None) -> dt.datetime:
        return moment_of(self.clock().date() if day is None else day)

    def _later(self, uid: str) -> dt.datetime:
        """Return the time of a new submission, which is later than the one before unless the clock is set."""
        row = self._holdings.among([uid], None, ANY_VISIBILITY)
        before: dt.datetime | None = row["TimeStamp"][0].as_py()
        if self._now is not None or before is None:
            return self.clock()
        return max(self.clock(), before + dt.timedelta(seconds=1))

    def _checked(self, series: Uids) -> list[str]:
        """Return the UIDs, all of which must be in the archive."""
        uids = listed(series)
        rows = self._holdings.among(uids, None, ANY_VISIBILITY)
        unknown = sorted(set(uids) - set(rows["SeriesInstanceUID"].to_pylist()))
        if unknown or not uids:
            raise OperationError(f"there is no series {unknown[0]}" if unknown else "no series is named")
        return uids

    def _touched(self, uids: Sequence[str]) -> Iterator[tuple[str, pa.Table, pa.ChunkedArray]]:
        """Yield the collections that contain the series: name, rows, and which of the rows are those of the series."""
        touched = self._holdings.among(uids, None, ANY_VISIBILITY)
        for name in pc.unique(touched["Collection"]).to_pylist():
            rows = self._holdings.rows_of(name)
            yield name, rows, pc.is_in(rows["SeriesInstanceUID"], pa.array(uids, pa.string()))

    def _edit(self, action: str, series: Uids, columns: Mapping[str, Any]) -> None:
        with self._lock:
            self._apply(action, self._checked(series), checked_values(columns))

    def _apply(
        self,
        action: str,
        uids: Sequence[str],
        columns: Mapping[str, Any],
        contents: Sequence[str] = (),
        **fields: Any,
    ) -> None:
        """Set columns of some series; other columns and collections are not copied."""
        slices = {}
        for name, rows, mask in self._touched(uids):
            for column, value in columns.items():
                new = pa.scalar(value, CATALOG_SCHEMA.field(column).type)
                rows = with_column(rows, column, pc.if_else(mask, new, rows[column]))
            slices[name] = rows
        self._swap(action, uids, slices, columns, contents, **fields)

    def _swap(
        self,
        action: str,
        uids: Sequence[str],
        slices: Mapping[str, pa.Table],
        columns: Mapping[str, Any],
        contents: Sequence[str] = (),
        **fields: Any,
    ) -> None:
        if self._images is not None:
            fields["images"] = self._images
        self._holdings.change(slices, contents, **fields)
        self._forget(slices)
        self._events.append({"time": self.clock(), "action": action, "series": list(uids), "columns": dict(columns)})

    def _overlay(self) -> PhantomStore:
        if self._images is None:
            self._images = PhantomStore((), behind=self._first.images)
        return self._images

    def _replaced(self, uid: str, slices: int | None) -> dict[str, Any]:
        """Give a series other files; return the columns that follow from them."""
        images = self._holdings.catalog.images
        if images is None or not images.instances(uid):
            return {}
        store = self._overlay()
        plan = store.plan(uid)
        if plan is None:
            raise OperationError(f"the images of series {uid} are not phantoms: they cannot be replaced")
        store.take(revised(plan, slices))
        names = ("ImageCount", "FileSize", *(() if slices is None else ("SliceThickness(mm)",)))
        columns = store.columns(uid)
        return {name: columns[name] for name in names}

    def _with_files(self, template: str, row: dict[str, Any], slices: int | None) -> dict[str, Any]:
        """Give a new series files; return its complete row."""
        store = self._overlay()
        plan = store.plan(template)
        if (plan is None or plan.source is None) and row["Modality"] not in DRAWABLE:
            row["Modality"] = "CT"
        # The headers of phantoms need the defaults, whatever the catalog contains.
        made = cloned(plan, {k: DEFAULTS.get(k) if v is None else v for k, v in row.items()}, slices)
        store.take(made)
        return {**row, **store.columns(made.uid)}

    def _template(self, collection: str, like: str | None) -> dict[str, Any]:
        rows = self._holdings.rows_of(collection)
        if like is not None:
            rows = self._holdings.among(self._checked(like), None, ANY_VISIBILITY)
        elif not rows.num_rows:
            rows = self._holdings.catalog.series
        if not rows.num_rows:
            raise OperationError("the archive is empty: there is no series to copy")
        return dict(rows.slice(0, 1).to_pylist()[0])


def _without(rows: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """Return the rows that `mask` does not mark; where it marks few, without copying the others."""
    gaps = pc.indices_nonzero(mask).to_pylist()
    if len(gaps) > _MOST_GAPS:
        return rows.filter(pc.invert(mask))
    starts, ends = [0, *(gap + 1 for gap in gaps)], [*gaps, rows.num_rows]
    return pa.concat_tables([rows.slice(a, b - a) for a, b in zip(starts, ends, strict=True)])
