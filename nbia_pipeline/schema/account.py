"""The account that every archive has."""

from __future__ import annotations

GUEST = "nbia_guest"
"""User name of the guest, who sees what is public and needs no password."""
