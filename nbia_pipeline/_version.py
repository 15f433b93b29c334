"""The version, in a module that imports nothing, so that any package can import it."""

__version__ = "0.2.0"
