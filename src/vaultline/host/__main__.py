"""``python -m vaultline.host``: a launch request on standard input, lines on standard output."""

from __future__ import annotations

import os
import signal
import sys

from vaultline.core.errors import VaultlineError
from vaultline.core.hostline import LaunchRequest
from vaultline.core.serde import from_json
from vaultline.host.engine import LocalEngine

_REQUEST_BYTES_MAX = 1 << 20


def _request_line() -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) <= _REQUEST_BYTES_MAX:
        part = os.read(0, 1 << 16)
        if not part:
            break
        data += part
    return data


def _stop(*_: object) -> None:
    raise SystemExit(0)


def main() -> None:
    """Run one deployment; ends, and ends its workers, when the owner closes standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    try:
        request = from_json(_request_line(), LaunchRequest, what="the launch request")
        sys.exit(LocalEngine(request, owner_in=0, owner_out=1).run())
    except VaultlineError as error:
        print(error.diagnostics(), file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
