"""`python -m stube` is the command `stube`."""

import sys

from stube.cli import main

if __name__ == "__main__":
    sys.exit(main())
