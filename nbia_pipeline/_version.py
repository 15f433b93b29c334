"""The version, in a module that imports nothing, so that any room can name it."""

__version__ = "0.2.0"
