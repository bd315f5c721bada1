"""``python -m vaultline.host``: a launch request on standard input, lines on standard output."""

from __future__ import annotations

import sys

from vaultline.core.errors import VaultlineError
from vaultline.core.hostline import LaunchRequest
from vaultline.core.serde import from_json
from vaultline.host.engine import LocalEngine
from vaultline.host.entry import end_when_told, first_line

_REQUEST_BYTES_MAX = 1 << 20


def main() -> None:
    """Run one deployment; ends, and ends its workers, when the owner closes standard input."""
    end_when_told()
    try:
        request = from_json(
            first_line(_REQUEST_BYTES_MAX), LaunchRequest, what="the launch request"
        )
        sys.exit(LocalEngine(request, owner_in=0, owner_out=1).run())
    except VaultlineError as error:
        print(error.diagnostics(), file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
