"""``python -m vaultline``."""

from vaultline.cli.main import main

if __name__ == "__main__":
    main()
