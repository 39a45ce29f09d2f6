"""``python -m backbone``: the command line."""

import sys

from backbone.api.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
