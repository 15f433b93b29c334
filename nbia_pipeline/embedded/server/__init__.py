"""The running archive: its HTTP application, tokens, caches, and the faults that it injects."""
