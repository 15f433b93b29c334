"""``python -m nbia_pipeline`` is the ``nbia-pipeline`` command."""

import sys

from nbia_pipeline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
