"""Tests of the archive client, over real HTTP."""
