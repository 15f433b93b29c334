"""What can go wrong with a lake."""

from __future__ import annotations


class LakeError(Exception):
    """The lake cannot be read or written; the text says where, why and what to do.

    Attributes:
        arguments: names of the arguments to check, ``("lake",)`` where the address of the lake may be wrong.
    """

    def __init__(self, text: str, *, arguments: tuple[str, ...] = ()) -> None:
        super().__init__(text)
        self.arguments = arguments


class WouldEmpty(LakeError):
    """A table that has rows would be replaced by one without rows; it was left as it was."""
