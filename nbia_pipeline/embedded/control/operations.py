"""What can be done to a running archive: the operations of the control interface, callable in-process.

``app.state.archive.control`` is the :class:`Operations` of an application. Over HTTP the same operations
are those of :class:`nbia_pipeline.embedded.control.client.Control`.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from nbia_pipeline.embedded.catalog.holdings import ANY_VISIBILITY, filled_in
from nbia_pipeline.embedded.catalog.model import FACTS, VISIBLE, CollectionFacts
from nbia_pipeline.embedded.control.fault import Fault
from nbia_pipeline.embedded.control.values import Day, OperationError, Uids, checked_values, listed, moment_of
from nbia_pipeline.embedded.phantoms.dicom_files import decimal, uid_of
from nbia_pipeline.embedded.phantoms.overlay import DRAWABLE, OverlayStore, cloned, revised

if TYPE_CHECKING:
    from nbia_pipeline.embedded.server.app import Archive

NOT_VISIBLE = 2
_NOT_REVIEWED = 0
# Rows taken out one by one; more of them are filtered out together.
_MOST_GAPS = 8


class Operations:
    """Changes of one archive. All methods may be called from several threads.

    Every change is one step for those who ask the archive: they see the state before it or after it.
    """

    def __init__(self, archive: Archive) -> None:
        """Take the archive."""
        self._archive = archive
        self._first = archive.holdings.catalog
        self._first_guide = archive.settings.guide_spellings
        self._first_lifetimes = archive.tokens.lifetime, archive.tokens.refresh_lifetime
        self._lock = threading.RLock()
        self._now: dt.datetime | None = None
        self._added = 0
        self._events: list[dict[str, Any]] = []
        self._images: OverlayStore | None = None

    # --- series

    def release(self, series: Uids, day: Day | None = None) -> None:
        """Make series visible and released.

        Args:
            series: which ones.
            day: DateReleased; None: the present day of the server's clock.
        """
        self._edit("release", series, {"Visibility": VISIBLE, "DateReleased": self._day(day), "ReleasedStatus": "Yes"})

    def back_date(self, series: Uids, day: Day) -> None:
        """Change the day of release, and nothing else."""
        self._edit("back_date", series, {"DateReleased": self._day(day)})

    def hide(self, series: Uids, code: int = NOT_VISIBLE) -> None:
        """Hide series: they vanish from the lists without any other sign.

        Args:
            series: which ones.
            code: code of the visibility.
        """
        self._edit("hide", series, {"Visibility": code})

    def show(self, series: Uids) -> None:
        """Let series return (or appear): only their visibility changes, not the day of release."""
        self._edit("show", series, {"Visibility": VISIBLE})

    def replace(self, series: Uids, hidden: bool = True, slices: int | None = None) -> None:
        """Give series new contents under the same UIDs: other pixels, other digests, TimeStamp of now.

        Args:
            series: which ones. Without files (as in the catalogue idc) only the TimeStamp changes.
            hidden: whether they lose their visibility by it, as on the server; :meth:`show` brings them back.
            slices: number of slices from now on; None: as many as before, and the same FileSize.

        Raises:
            OperationError: for images that are not phantoms.
        """
        with self._lock:
            uids = self._checked(series)
            for uid in uids:
                facts = self._replaced(uid, slices)
                changes = {"TimeStamp": self._later(uid), **({"Visibility": _NOT_REVIEWED} if hidden else {}), **facts}
                self._apply("replace", [uid], changes, contents=True)

    def delete(self, series: Uids) -> None:
        """Delete series physically: row and files are gone."""
        with self._lock:
            uids = self._checked(series)
            wanted = pa.array(uids, pa.string())
            slices = {
                name: _without(rows, pc.is_in(rows["SeriesInstanceUID"], wanted))
                for name, rows in self._touched(uids).items()
            }
            self._swap("delete", uids, slices, {})

    def edit(self, series: Uids, **columns: Any) -> None:
        """Change facts of series: licence, description, site, anything but their UID; no date moves.

        Args:
            series: which ones.
            columns: new value by column of the catalogue, like ``LicenseName="..."``; None empties it.
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
            like: UID of the series whose facts it takes over; None: the first of the collection, or else of all.
            patient: PatientID; None: that of the other.
            study: StudyInstanceUID to put it into; None: a new study.
            released: DateReleased; None: the present day of the server's clock.
            visible: False for a series that nobody has reviewed yet, and that has no day of release.
            slices: number of slices; None: as many as the other, or 6 where that has no files.
            columns: other facts by column of the catalogue.

        Returns:
            Its SeriesInstanceUID.
        """
        with self._lock:
            template = self._template(collection, like)
            self._added += 1
            uid = uid_of("added", collection, self._added)
            moment = self.clock()
            facts = {
                **template,
                "SeriesInstanceUID": uid,
                "StudyInstanceUID": study or uid_of("added study", collection, self._added),
                "Collection": collection,
                "TimeStamp": moment,
                "DateReleased": self._day(released) if visible else None,
                "ReleasedStatus": "Yes" if visible else "No",
                "Visibility": VISIBLE if visible else _NOT_REVIEWED,
                **({} if patient is None else {"PatientID": patient, "PatientName": patient}),
                **checked_values(columns),
            }
            row = self._with_files(template["SeriesInstanceUID"], facts, slices)
            self._insert(row)
            return uid

    def series(self, collection: str | None = None) -> list[dict[str, Any]]:
        """Return the facts of all series, of any visibility and whoever may see them.

        Args:
            collection: exact name of a collection; None: all.
        """
        held = self._archive.holdings
        names = held.collections() if collection is None else [collection]
        return [row for name in names for row in held.facts_of(name).to_pylist()]

    # --- collections and carts

    def add_collection(self, name: str, description: str = "", uri: str = "", restricted: bool = False) -> None:
        """Add a collection or change what is told about it; it is listed once it has a visible series.

        Args:
            name: its exact spelling.
            description: HTML.
            uri: address of its DOI.
            restricted: whether only accounts that hold it see it.
        """
        with self._lock:
            edited = int(self.clock().replace(tzinfo=dt.timezone.utc).timestamp() * 1000)
            held = self._archive.holdings.catalog
            facts = CollectionFacts(name, description, uri, edited)
            others = held.restricted - {name}
            self._swap(
                "add_collection",
                [],
                {name: self._archive.holdings.facts_of(name)},
                {"collection": name, "description": description, "uri": uri, "restricted": restricted},
                descriptions={**held.descriptions, name: facts},
                restricted=others | {name} if restricted else others,
            )

    def cart(self, name: str, series: Uids) -> None:
        """Share a cart of series under a name; an existing one of that name is replaced."""
        with self._lock:
            uids = listed(series)
            carts = {**self._archive.holdings.catalog.carts, name: tuple(uids)}
            self._swap("cart", uids, {}, {"name": name}, carts=carts)

    # --- tokens

    def expire_tokens(self) -> None:
        """Let every token run out now."""
        self._archive.tokens.expire_all()

    def token_lifetime(self, seconds: float, refresh: float | None = None) -> None:
        """Set how long tokens live that are issued from now on.

        Args:
            seconds: of an access token.
            refresh: of a refresh token; None: the same.
        """
        tokens = self._archive.tokens
        tokens.lifetime, tokens.refresh_lifetime = seconds, seconds if refresh is None else refresh

    # --- the way the server answers

    def now(self, moment: Day | None = None) -> str:
        """Set the server's clock, which stands still then, or let it go with the real one again.

        It gives TimeStamp and DateReleased of later changes; tokens and waits live by the real clock.

        Args:
            moment: the new time; None: the real one.

        Returns:
            The time of the server as ISO 8601.
        """
        self._now = None if moment is None else moment_of(moment)
        return self.clock().isoformat()

    def latency(self, seconds: float) -> None:
        """Let every answer begin so much later."""
        self._archive.traffic.latency = seconds

    def bandwidth(self, bytes_per_second: float | None = None) -> None:
        """Let every answer flow no faster than that; None: as fast as it can."""
        self._archive.traffic.bandwidth = bytes_per_second

    def faults(self, *faults: Fault, seed: int = 0) -> None:
        """Set what goes wrong from now on; without any, nothing does.

        Args:
            faults: the faults, the first that strikes wins.
            seed: what chance follows from.
        """
        self._archive.traffic.plan(faults, seed)

    def guide_spellings(self, on: bool) -> None:
        """Write the guide's spellings of keys where they differ from the server's, or stop doing so."""
        self._archive.settings.guide_spellings = on

    def requests(self, clear: bool = False) -> list[dict[str, Any]]:
        """Return the requests so far: method, path, endpoint, query, status, bytes, seconds, fault.

        Args:
            clear: forget them then.
        """
        return self._archive.traffic.requests(clear)

    def events(self) -> list[dict[str, Any]]:
        """Return the changes so far, in order: time, action, series, columns."""
        with self._lock:
            return [dict(event) for event in self._events]

    def reset(self) -> None:
        """Undo everything: the catalogue, tokens, faults, clock, spellings and records of the start."""
        with self._lock:
            archive = self._archive
            archive.traffic.reset()
            archive.tokens.expire_all()
            archive.tokens.lifetime, archive.tokens.refresh_lifetime = self._first_lifetimes
            archive.settings.guide_spellings = self._first_guide
            archive.settings.downloads.clear()
            changed, self._events, self._added, self._now = bool(self._events), [], 0, None
            if changed:
                self._images = None
                archive.restore(self._first)

    def clock(self) -> dt.datetime:
        """Return the time of the server, which has no zone."""
        return self._now or dt.datetime.now().replace(microsecond=0)  # noqa: DTZ005 - the server's times are naive

    # --- how it is done

    def _day(self, day: Day | None) -> dt.datetime:
        return moment_of(self.clock().date() if day is None else day)

    def _later(self, uid: str) -> dt.datetime:
        """Return the time of a new submission, which no real clock gives twice."""
        row = self._archive.holdings.one_series(uid, None, ANY_VISIBILITY)
        before: dt.datetime | None = row["TimeStamp"][0].as_py()
        if self._now is not None or before is None:
            return self.clock()
        return max(self.clock(), before + dt.timedelta(seconds=1))

    def _checked(self, series: Uids) -> list[str]:
        """Return the UIDs, all of which must be held."""
        uids = listed(series)
        rows = self._archive.holdings.among(uids, None, ANY_VISIBILITY)
        unknown = sorted(set(uids) - set(rows["SeriesInstanceUID"].to_pylist()))
        if unknown or not uids:
            raise OperationError(f"there is no series {unknown[0]}" if unknown else "no series is named")
        return uids

    def _touched(self, uids: Sequence[str]) -> dict[str, pa.Table]:
        """Return the facts of the collections in which the series are."""
        rows = self._archive.holdings.among(uids, None, ANY_VISIBILITY)
        return {name: self._archive.holdings.facts_of(name) for name in pc.unique(rows["Collection"]).to_pylist()}

    def _edit(self, action: str, series: Uids, columns: Mapping[str, Any]) -> None:
        with self._lock:
            self._apply(action, self._checked(series), checked_values(columns))

    def _apply(self, action: str, uids: Sequence[str], columns: Mapping[str, Any], contents: bool = False) -> None:
        """Set columns of some series: only these columns are made anew, and only in the touched collections."""
        wanted, slices = pa.array(uids, pa.string()), {}
        for name, rows in self._touched(uids).items():
            mask = pc.is_in(rows["SeriesInstanceUID"], wanted)
            for column, value in columns.items():
                position, field = FACTS.get_field_index(column), FACTS.field(column)
                changed = pc.if_else(mask, pa.scalar(value, field.type), rows[column])
                rows = rows.set_column(position, field, changed)
            slices[name] = rows
        self._swap(action, uids, slices, columns, contents=uids if contents else ())

    def _insert(self, row: Mapping[str, Any]) -> None:
        collection, uid = row["Collection"], row["SeriesInstanceUID"]
        before = self._archive.holdings.facts_of(collection)
        added = filled_in(pa.Table.from_pylist([dict(row)], schema=FACTS))
        self._swap("add_series", [uid], {collection: pa.concat_tables([before, added])}, row, contents=[uid])

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
        self._archive.change(slices, contents, **fields)
        event = {"time": self.clock(), "action": action, "series": list(uids), "columns": dict(columns)}
        self._events.append(event)

    def _overlay(self) -> OverlayStore:
        if self._images is None:
            self._images = OverlayStore(self._first.images)
        return self._images

    def _replaced(self, uid: str, slices: int | None) -> dict[str, Any]:
        """Let a series have other files; return the facts that follow from them."""
        images = self._archive.holdings.catalog.images
        if images is None or not images.instances(uid):
            return {}
        store = self._overlay()
        plan = store.plan(uid)
        if plan is None:
            raise OperationError(f"the images of series {uid} are not phantoms: they cannot be made anew")
        changed = revised(plan, slices)
        store.take(changed)
        return _counted(store, uid) | ({} if slices is None else {"SliceThickness(mm)": _thickness(changed.geometry)})

    def _with_files(self, template: str, facts: dict[str, Any], slices: int | None) -> dict[str, Any]:
        """Give a new series files; return its whole row."""
        store = self._overlay()
        plan = store.plan(template)
        if (plan is None or plan.source is None) and facts["Modality"] not in DRAWABLE:
            facts["Modality"] = "CT"
        made = cloned(plan, facts, slices)
        # The phantoms' headers want these, whatever the catalogue holds.
        whole = {"Phantom": "NO", "SpeciesCode": "337915000", "SpeciesDescription": "Homo sapiens"}
        made = replace(made, facts={k: whole.get(k) if v is None else v for k, v in facts.items()})
        store.take(made)
        facts = {**facts, "SOPClassUID": made.sop_class, **_counted(store, made.uid)}
        if made.source is None:
            facts["PixelSpacing(mm)-Row"] = decimal(made.geometry.spacing)
            facts["SliceThickness(mm)"] = _thickness(made.geometry)
        return facts

    def _template(self, collection: str, like: str | None) -> dict[str, Any]:
        held = self._archive.holdings
        if like is not None:
            rows = held.among(self._checked(like), None, ANY_VISIBILITY)
        else:
            rows = held.facts_of(collection)
            if not rows.num_rows:
                rows = held.catalog.series
        if not rows.num_rows:
            raise OperationError("the archive is empty: there is no series to make another one like")
        return dict(rows.slice(0, 1).to_pylist()[0])


def _without(rows: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """Return the rows that `mask` does not mark; of few gaps the pieces between them, without copying."""
    gaps = pc.indices_nonzero(mask).to_pylist()
    if len(gaps) > _MOST_GAPS:
        return rows.filter(pc.invert(mask))
    starts, ends = [0, *(gap + 1 for gap in gaps)], [*gaps, rows.num_rows]
    return pa.concat_tables([rows.slice(a, b - a) for a, b in zip(starts, ends, strict=True)])


def _counted(store: OverlayStore, uid: str) -> dict[str, Any]:
    instances = store.instances(uid)
    return {"ImageCount": len(instances), "FileSize": sum(i.size for i in instances)}


def _thickness(geometry: Any) -> str:
    return decimal(geometry.thickness)
