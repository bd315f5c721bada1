"""``python -m vaultline``: the command line, where its script is not on the path."""

import sys

from vaultline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
