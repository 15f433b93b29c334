"""The configuration: one model, whose fields the environment, the YAML component and the archive resource share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from nbia_pipeline.address import is_base_url, lake_address
from nbia_pipeline.schema import GUEST as GUEST
from nbia_pipeline.text import TextError, bytes_of, is_glob, matching, similar_names

KNOWN_ARCHIVES = {
    "tcia": "https://services.cancerimagingarchive.net/nbia-api",
    "nlst": "https://nlst.cancerimagingarchive.net/nbia-api",
}
EMBEDDED = "embedded"

METADATA_CALLS = ("auto", "bulk", "single")

_EXAMPLE = '{"multiprocess": {"max_concurrent": 4}}'
_EXAMPLE_OF_SELECT = '{"LIDC-IDRI": {"modalities": ["CT", "SEG"]}}'

SELECTS_BY_LIST = ("modalities", "body_parts", "patients", "series")
SELECTS_BY_NAME = ("manifest", "cart")
"""Fields of an entry of ``select``: lists of values, and the two that name a list of series."""

_MAY_BE_EMPTY = ("images", "headers")

MIN_POLL_SECONDS = 60  # the server caches its answers that long

PASSWORD: Any = Field(
    default="",
    repr=False,
    json_schema_extra={"dagster__is_secret": True},
    description="Password of the account, empty for the guest; never printed.",
)
"""The field of the password, for the models that may have one. YAML may not: it would be shown in the UI."""


class SettingsError(TextError):
    """A setting that cannot be used; the text names it as the person wrote it, its value and the remedy."""


def field_of(argument: str) -> str:
    """Return the field of :class:`Settings` that an argument of the library comes from."""
    return {"base_url": "archive", "uri": "lake"}.get(argument, argument)


def variable_of(argument: str) -> str:
    """Return the environment variable that an argument of the library, or a field of the settings, comes from."""
    return f"NBIA_{field_of(argument).upper()}"


@contextmanager
def values_of(model: type[BaseModel], name_of: Callable[[str], str] = field_of) -> Iterator[None]:
    """Turn pydantic's errors about the values of a model into ours.

    Args:
        model: which one is made inside.
        name_of: what the person calls a field.

    Raises:
        SettingsError: a value has the wrong type, or belongs to no field.
    """
    try:
        yield
    except ValidationError as e:
        raise _not_valid(e.errors()[0], model, name_of) from None  # its text shows values, and one may be the password


class Connection(BaseModel):
    """Which archive, and how it is reached: the fields that settings, component and resource share."""

    model_config = ConfigDict(frozen=True)

    archive: str = Field(
        default=EMBEDDED,
        description=f"{EMBEDDED}, {', '.join(KNOWN_ARCHIVES)}, or a base URL that ends in /nbia-api.",
    )
    api: str = Field(default="v2", description="v2 (that of the guide, with a token) or v4 (newer, no token needed).")
    username: str = Field(default=GUEST, description="Account at the archive.")
    ca_bundle: str | None = Field(default=None, description="File of certificates to trust. None: those of the system.")
    max_in_flight: int = Field(
        default=16,
        description="Most requests in flight to the archive at a time, per process. It begins with at most 8 and uses "
        "more while that is faster. The pool of the assets limits the processes.",
    )
    bwlimit: str | None = Field(
        default=None,
        description="Most bytes per second from the archive, per process, such as 50MB. None: no limit.",
    )


class Pipeline(Connection):
    """What is mirrored, to where and when: the fields that settings and component share."""

    lake: str = Field(
        default="./lake", description="Directory or URI of the lake, such as /data/tcia or s3://bucket/tcia."
    )
    collections: tuple[str, ...] = Field(
        default=("*",), description="Names or globs of the collections whose tables are mirrored."
    )
    images: tuple[str, ...] | None = Field(
        default=None,
        description="Names or globs of the collections whose images are mirrored. None: all for the embedded archive, "
        "none for any other.",
    )
    headers: tuple[str, ...] | None = Field(
        default=None,
        description="Names or globs of the collections whose files' headers are read into tables. None: of all whose "
        "images are mirrored. An empty list turns it off. See docs/headers.md.",
    )
    select: dict[str, dict[str, Any]] = Field(
        default={},
        description="Which series of the mirrored collections are wanted: a mapping from names or globs of "
        "collections to conditions, which must all be met: lists of modalities, body_parts, patients or series, the "
        "path of a manifest, the name of a cart. The first name or glob that matches a collection applies; without a "
        "match, all its series are wanted. Example: "
        f"{_EXAMPLE_OF_SELECT}.",
    )
    metadata: str = Field(
        default="auto",
        description="How series_metadata is requested on v2. bulk: 5,000 series per call, which leaves SOPClassUID, "
        "StudyID, AnnotationSize and TimeStamp null; single: also one call per series, which fills them; auto: single "
        "for collections of up to 5,000 series. v4 has the bulk call only.",
    )
    fsync: bool = Field(
        default=True,
        description="Whether what is finished is flushed to the disk, so that it survives a loss of power. off: for a "
        "lake that can be thrown away. An object store flushes by itself.",
    )
    poll_seconds: int = Field(default=3600, description="Seconds between two ticks of a sensor, at least 60.")
    catalogue_cron: str = Field(default="0 2 * * *", description="When the catalog is listed (UTC).")
    reconcile_cron: str = Field(default="0 3 * * *", description="When all collections are listed in full (UTC).")
    annotations: bool = Field(
        default=True, description="Whether the annotation files of mirrored series are fetched beside their images."
    )
    automation: bool = Field(
        default=False,
        description="Whether tables and images have automation conditions, and a sensor that evaluates them once it "
        "is turned on. See docs/automation.md.",
    )
    executor: str | dict[str, dict[str, Any]] | None = Field(
        default=None,
        description="Where the steps of images run: in_process, multiprocess, celery, ray, k8s, or module:name; with "
        'its configuration as a mapping, such as {"celery": {"broker": {"env": "BROKER"}}}. None: in the process of '
        "the run. See docs/scale-out.md.",
    )


class Settings(Pipeline):
    """The configuration of one archive, checked when it is made.

    The fields' own descriptions are those of :class:`Connection` and :class:`Pipeline`. Afterwards ``lake`` is an
    absolute directory or a URI, and ``images`` is a tuple. Cron expressions are checked when the definitions are built.

    Args:
        name_of: what the person calls a setting, given its field: the field itself, or a variable. For error texts.
        given: values of fields.

    Raises:
        SettingsError: a value is unknown or contradicts another.
    """

    model_config = ConfigDict(extra="forbid")

    password: str = PASSWORD
    _name_of: Callable[[str], str] = PrivateAttr()

    def __init__(self, name_of: Callable[[str], str] = field_of, /, **given: Any) -> None:
        with values_of(type(self), name_of):
            super().__init__(**given)
        self._name_of = name_of
        self._check_archive()
        if self.max_in_flight < 1:
            raise SettingsError(f"{name_of('max_in_flight')} is {self.max_in_flight}: set it to 1 or more")
        self._check_bwlimit()
        self._check_account()
        self._check_executor()
        self._check_selection()
        self._check_select()
        self._check_lake()
        if self.ca_bundle is not None and not os.path.isfile(self.ca_bundle):  # noqa: PTH113 - Path may raise here
            raise SettingsError(f"{name_of('ca_bundle')} is {self.ca_bundle[:200]!r}: there is no such file")
        if self.poll_seconds < MIN_POLL_SECONDS:
            raise SettingsError(
                f"{name_of('poll_seconds')} is {self.poll_seconds}: set it to {MIN_POLL_SECONDS} or more, because the "
                "server caches its answers that long"
            )
        if self.metadata not in METADATA_CALLS:
            raise SettingsError(f"{name_of('metadata')} is {self.metadata!r}: set it to {', '.join(METADATA_CALLS)}")

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, name_of: Callable[[str], str] = variable_of
    ) -> Settings:
        """Read the ``NBIA_*`` variables; an unset or empty one takes its default.

        Only ``NBIA_IMAGES`` and ``NBIA_HEADERS`` may be set and empty: no images, no headers.

        Args:
            environ: the variables. None: those of the process.
            name_of: what the person calls a setting, given its field, where that is not its variable.

        Raises:
            SettingsError: a value is wrong, or a variable is a misspelling of a known one.
        """
        env = os.environ if environ is None else environ
        _refuse_misspelled(env)
        given: dict[str, Any] = {}
        for name in cls.model_fields:
            text = env.get(variable_of(name))
            if text or (text is not None and name in _MAY_BE_EMPTY):
                given[name] = split_names(text) if name in ("collections", *_MAY_BE_EMPTY) else text
        if "select" in given:
            given["select"] = _from_json(name_of("select"), given["select"], _EXAMPLE_OF_SELECT)
        return cls(name_of, **given)

    def name_of(self, argument: str) -> str:
        """Return what the person who wrote the settings calls one of them: its field, or its variable."""
        return self._name_of(argument)

    @property
    def bytes_per_second(self) -> int | None:
        """How many bytes may come from the archive per second; None: any number."""
        return bytes_of(self.bwlimit.removesuffix("/s")) if self.bwlimit else None

    def mirrors_images_of(self, collection: str) -> bool:
        """Return whether the images of `collection` are mirrored."""
        return bool(matching(self.names_of("images"), [collection]))

    def reads_headers_of(self, collection: str) -> bool:
        """Return whether the headers of the files of `collection` are read: by default, if its images are mirrored."""
        return bool(matching(self.names_of("headers"), [collection]))

    @property
    def reads_headers(self) -> bool:
        """Whether there are assets that read headers."""
        return self.headers != ()

    def names_of(self, field: str) -> tuple[str, ...]:
        """Return the names and globs of collections, images or headers; where those of headers are left out, images."""
        as_images = field == "headers" and self.headers is None
        names: tuple[str, ...] | None = getattr(self, "images" if as_images else field)
        return names or ()

    def _check_archive(self) -> None:
        if self.api not in ("v2", "v4"):
            raise SettingsError(f"{self.name_of('api')} is {self.api!r}: set it to v2 or v4")
        if self.archive == EMBEDDED or self.archive in KNOWN_ARCHIVES:
            return
        name = self.name_of("archive")
        if "@" in self.archive:  # anywhere: the value is not shown, because it may hold a password
            account = f"{self.name_of('username')} and {self.name_of('password')}"
            raise SettingsError(f"{name} contains an account: put it into {account} instead")
        if not (is_base_url(self.archive) and self.archive.endswith("/nbia-api")):
            names = ", ".join((EMBEDDED, *KNOWN_ARCHIVES))
            raise SettingsError(
                f"{name} is {self.archive!r}: set it to {names}, or to a base URL that ends in /nbia-api, such as "
                "https://archive.example.org/nbia-api"
            )

    def _check_account(self) -> None:
        username, password = self.name_of("username"), self.name_of("password")
        if self.username == GUEST and self.password:
            raise SettingsError(f"{password} is set, but {username} is the guest {GUEST}: name the account it is for")
        if self.username != GUEST and not self.password:
            raise SettingsError(f"{username} is {self.username!r}, but {password} is empty: set it too")

    def _check_bwlimit(self) -> None:
        try:
            _ = self.bytes_per_second
        except ValueError:
            name = self.name_of("bwlimit")
            raise SettingsError(f"{name} is {self.bwlimit!r}: set it to bytes per second, such as 50MB") from None

    def _check_executor(self) -> None:
        name = self.name_of("executor")
        if isinstance(self.executor, str) and self.executor.startswith("{"):
            object.__setattr__(self, "executor", _from_json(name, self.executor, _EXAMPLE))
        if self.executor and not isinstance(self.executor, str):
            config = list(self.executor.values()) if isinstance(self.executor, dict) else []
            if len(config) != 1 or not isinstance(config[0], dict):
                raise SettingsError(f"{name} is not one executor with its configuration: write it as {_EXAMPLE}")

    def _check_lake(self) -> None:
        try:
            object.__setattr__(self, "lake", lake_address(self.lake))
        except ValueError as e:
            raise SettingsError(f"{self.name_of('lake')} {e}") from None

    def _check_selection(self) -> None:
        collections = self.name_of("collections")
        if not self.collections:
            raise SettingsError(f"{collections} is empty: name collections or globs, or leave it out for all")
        if self.images is None:
            object.__setattr__(self, "images", ("*",) if self.archive == EMBEDDED else ())
        for field in _MAY_BE_EMPTY:
            for name in getattr(self, field) or ():
                if not is_glob(name) and not matching(self.collections, [name]):
                    raise SettingsError(
                        f"{self.name_of(field)} names {name!r}, but {collections} ({', '.join(self.collections)}) "
                        f"leaves it out: its {field} need its series table, so add it there too"
                    )

    def _check_select(self) -> None:
        name = self.name_of("select")
        for pattern, entry in self.select.items():
            if not is_glob(pattern) and not matching(self.collections, [pattern]):
                collections = f"{self.name_of('collections')} ({', '.join(self.collections)})"
                raise SettingsError(f"{name} names {pattern!r}, but {collections} leaves it out: add it there too")
            for field, value in entry.items():
                self._check_selected(f"{field!r} of {pattern!r} in {name}", field, value)
        # Dagster's steps may have another working directory.
        made = {
            pattern: {field: os.path.abspath(value) if field == "manifest" else value for field, value in entry.items()}  # noqa: PTH100
            for pattern, entry in self.select.items()
        }
        object.__setattr__(self, "select", made)

    def _check_selected(self, where: str, field: str, value: Any) -> None:
        """Check one field of an entry of ``select``; `where` is what the person calls it."""
        known = (*SELECTS_BY_LIST, *SELECTS_BY_NAME)
        if field not in known:
            hint = _did_you_mean(field, known) or f": use {', '.join(known)}"
            raise SettingsError(f"{where} is not a field of a selection{hint}")
        if field in SELECTS_BY_NAME and not (isinstance(value, str) and value.strip()):
            raise SettingsError(f"{where} is {value!r}: set it to a string, or leave it out")
        texts = value if isinstance(value, list) and all(isinstance(text, str) for text in value) else []
        if field in SELECTS_BY_LIST and not texts:
            raise SettingsError(f"{where} is {value!r}: set it to a list of one or more strings, or leave it out")
        if field == "cart" and self.api == "v4":
            raise SettingsError(f"{where} needs {self.name_of('api')} v2: v4 has no shared carts")


VARIABLES = tuple(variable_of(name) for name in Settings.model_fields)


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated list of names or globs; blanks around a name are dropped."""
    return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def _from_json(name: str, text: str, example: str) -> Any:
    """Return the value of a variable that is JSON; `name` is the variable."""
    try:
        return json.loads(text)
    except ValueError as e:
        raise SettingsError(f"{name} is not JSON ({e}): write it as {example}") from None


def _not_valid(found: Mapping[str, Any], model: type[BaseModel], name_of: Callable[[str], str]) -> SettingsError:
    """Return what is wrong with the type of a value, in our words."""
    field = str(found["loc"][0])
    if found["type"] == "extra_forbidden":
        return SettingsError(f"{field} is not a setting{_did_you_mean(field, model.model_fields)}")
    kinds = {
        "collections": "a list of names or globs",
        "images": "a list of names or globs",
        "headers": "a list of names or globs",
        "executor": f"a name, or one name with its configuration, such as {_EXAMPLE}",
        "select": f"a mapping, such as {_EXAMPLE_OF_SELECT}",
    }
    types: dict[Any, str] = {int: "a whole number", bool: "true or false"}
    kind = types.get(model.model_fields[field].annotation) or kinds.get(field, "a string")
    shown = f"not {kind}" if field == "password" else repr(found["input"])
    entry = f" has {found['loc'][1]!r}, which" if field == "select" and len(found["loc"]) > 1 else ""
    return SettingsError(f"{name_of(field)}{entry} is {shown}: set it to {kind}")


def _refuse_misspelled(env: Mapping[str, str]) -> None:
    for variable in env:
        if variable.startswith("NBIA_") and variable not in VARIABLES:
            hint = _did_you_mean(variable, VARIABLES)
            if hint:  # others may use the prefix too
                raise SettingsError(f"{variable} is not a variable of nbia_pipeline{hint}")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = similar_names(name, known, shown=1, cutoff=0.8)
    return f": did you mean {close[0]}?" if close else ""
