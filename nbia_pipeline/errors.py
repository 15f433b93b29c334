"""The errors of the library whose texts are written for people, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable

from nbia_pipeline.archive import ArchiveError
from nbia_pipeline.lake import LakeError
from nbia_pipeline.mirror.selection import SelectionError
from nbia_pipeline.settings import Settings, SettingsError, field_of, variable_of
from nbia_pipeline.text import shown

OURS = (ArchiveError, LakeError, SettingsError, SelectionError)
"""Errors whose text is written for people: it says what was wrong, where, and what to do."""
WRONG_USAGE = (SettingsError, SelectionError)
"""Those of them that say that a setting, an option or a name is wrong."""


def error_text(error: BaseException, name_of: Callable[[str], str] = variable_of) -> str:
    """Return the text of an error for the person who configured the pipeline.

    The library knows its arguments only. Where the person knows one by another name, that name is appended, as in
    ``check username and password (NBIA_USERNAME, NBIA_PASSWORD)``.

    Args:
        error: any error; the names of arguments that its text mentions are its ``arguments``.
        name_of: what the person calls an argument; see :meth:`Settings.name_of`.
    """
    mentioned = [a for a in getattr(error, "arguments", ()) if field_of(a) in Settings.model_fields]
    names = [name for name in map(name_of, mentioned) if name not in mentioned]
    text = str(error)
    what = shown(getattr(error, "what", text))  # of an ArchiveError: the call follows it
    return what + (f" ({', '.join(names)})" if names else "") + text.removeprefix(what)
