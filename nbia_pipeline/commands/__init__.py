"""One module per command of ``nbia-pipeline``: `HELP`, `add_options` and `run`."""
