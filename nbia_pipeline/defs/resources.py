"""The archive and the lake as Dagster resources: thin, typed, and opened only when a step needs them."""

from __future__ import annotations

import os
import threading
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager

import dagster as dg
from pydantic import Field

from nbia_pipeline.archive import ClientOptions, NbiaClient
from nbia_pipeline.connect import address_of, connect, limited
from nbia_pipeline.reading.lake import Lake
from nbia_pipeline.settings import GUEST, PASSWORD, Connection, Settings


class _Logins:
    """The clients that the steps of this process share: one for each archive and account. Nothing of it is on a disk.

    A client is made by the first step that needs it, and logs out when the last of the runs that share it ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._interrupted = False
        self._clients: dict[Hashable, NbiaClient] = {}

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Share clients until the end of this block, or of one that it overlaps with and that ends later."""
        with self._lock:
            self._runs += 1
        try:
            with self._noting_interrupts():
                yield
        finally:
            ended, log_out = self._end()
            for client in ended:
                client.close(log_out=log_out)

    @contextmanager
    def client(self, settings: Settings, options: ClientOptions) -> Iterator[NbiaClient]:
        """Give a client with warnings of its own: one that shares a login, or logs out here where none is shared."""
        shared = self._shared(settings, options)
        if shared is None:
            with connect(settings, options) as own:
                yield own
        else:
            with self._noting_interrupts():
                yield shared

    def forget(self) -> None:
        """Start from scratch after a fork: the connections are the parent's."""
        self._lock = threading.Lock()
        self._clients = {}

    def _shared(self, settings: Settings, options: ClientOptions) -> NbiaClient | None:
        with self._lock:
            if not self._runs:
                return None
            account = (settings.api, settings.username, settings.password, settings.ca_bundle)
            key = (address_of(settings), *account)
            if key not in self._clients:
                self._clients[key] = connect(settings, options)
            return self._clients[key].again(options)

    @contextmanager
    def _noting_interrupts(self) -> Iterator[None]:
        try:
            yield
        except BaseException as e:  # an archive that does not answer to the logout must not delay an interrupt
            self._interrupted |= not isinstance(e, Exception)
            raise

    def _end(self) -> tuple[list[NbiaClient], bool]:
        """End one run; return the clients to close, and whether to log out."""
        with self._lock:
            self._runs -= 1
            if self._runs:
                return [], False
            ended, log_out = list(self._clients.values()), not self._interrupted
            self._clients, self._interrupted = {}, False
            return ended, log_out


_logins = _Logins()
os.register_at_fork(after_in_child=_logins.forget)


def one_login() -> AbstractContextManager[None]:
    """Let all clients that the resources of this process open in a block share a login, and log out at its end.

    A run of Dagster is such a block in each of its processes; around several runs of one process, they share a login.
    """
    return _logins.shared()


class NbiaResource(Connection, dg.ConfigurableResource):  # type: ignore[type-arg]
    """Connection to an NBIA archive.

    Every process of a run logs in by itself, when it makes its first call, and logs out when its part of the run is
    over; the steps in between share the login. The embedded archive is started unless a process of this user runs it
    already.

    Example:

    .. code-block:: python

        import dagster as dg
        from nbia_pipeline import NbiaResource

        @dg.asset
        def body_parts(nbia: NbiaResource) -> list[str]:
            with nbia.client() as client:
                return client.body_part_values()["BodyPartExamined"].to_pylist()

        defs = dg.Definitions(
            assets=[body_parts],
            resources={
                "nbia": NbiaResource(archive="tcia", username="me", password=dg.EnvVar("NBIA_PASSWORD"))
            },
        )
    """

    password: str = PASSWORD
    tries: int = Field(
        default=ClientOptions.tries, ge=1, description="Maximum number of attempts at one call, including the first."
    )

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[NbiaResource]:
        """Share a login among the steps of a run that are in one process, and log out at its end."""
        with one_login():
            yield self

    @contextmanager
    def client(self, options: ClientOptions | None = None, *, guest: bool = False) -> Iterator[NbiaClient]:
        """Open a client; it logs out at the end, or at that of the run whose steps share its login.

        Args:
            options: how long to wait and how often to try; None: as the fields say.
            guest: connect as the guest, whatever the account.

        Raises:
            SettingsError: a value is unknown or contradicts another: the fields may come from YAML or run config.
        """
        fields = {name: getattr(self, name) for name in (*Connection.model_fields, "password")}
        settings = Settings(**{**fields, **({"username": GUEST, "password": ""} if guest else {})})
        with _logins.client(settings, limited(settings, options or ClientOptions(tries=self.tries))) as client:
            yield client


class LakeResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The lake that tables and images are written to, and read from; the assets of other people can use it as well.

    Example:

    .. code-block:: python

        @dg.asset(deps=[["nbia", "images"]])
        def mean_of_first(nbia_lake: LakeResource) -> float:
            lake = nbia_lake.open(write=False)
            return float(next(iter(lake.images(modality="CT"))).volume().array.mean())

        defs = dg.Definitions(
            assets=[mean_of_first], resources={"nbia_lake": LakeResource(uri="s3://bucket/lake")}
        )
    """

    uri: str = Field(description="Directory or URI of the lake, like /data/lake or s3://bucket/lake.")
    fsync: bool = Field(default=True, description="Whether finished work survives a loss of power; see Lake.")

    def open(self, write: bool = True) -> Lake:
        """Return the lake; if it is to be written, after making sure that it can be.

        Raises:
            LakeError: it cannot be.
        """
        lake = Lake(self.uri, fsync=self.fsync)
        if write:
            lake.check_writable()
        return lake
