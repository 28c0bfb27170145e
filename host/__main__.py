"""``python -m host``: the command line, which is installed as ``tally`` too."""

import sys

from host.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
