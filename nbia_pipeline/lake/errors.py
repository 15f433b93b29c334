"""What can go wrong with a lake."""

from __future__ import annotations


class LakeError(Exception):
    """The lake cannot be read or written; the text says where, why and what to do."""


class WouldEmpty(LakeError):
    """A table that has rows would be replaced by one that has none; it was left as it was."""
