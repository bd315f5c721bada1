"""Fetching collateral from a PCCS, the one part of verification that uses the network.

In a process of its own: dcap-qvl's threads outlive its call and, now and then,
crash an interpreter that ends meanwhile; and it takes an answer of any length. So a child does it,
with little memory, and ends at once.
"""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
from typing import NoReturn

import dcap_qvl

from vaultline.core.errors import MachineError

#: Half a dozen small answers of a service nearby, and the start of an interpreter.
FETCH_S = 60
#: Collateral takes 20 KiB; what the interpreter, its threads and TLS take is below 100 MiB.
_DATA_BYTES_MAX = 512 << 20
_MESSAGE_CHARS = 1000


def fetch_collateral(url: str, quote: bytes) -> bytes:
    """A quote's collateral (JSON) from the PCCS at ``url``; not verified.

    Raises:
        MachineError: it cannot be had.
    """
    command = [sys.executable, "-m", "vaultline.owner.pccs", url]
    # One thread is enough, and each has memory of its own that counts.
    environment = os.environ | {"TOKIO_WORKER_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=quote, capture_output=True, timeout=FETCH_S, env=environment
        )
    except subprocess.TimeoutExpired:
        raise _failed(f"no answer within {FETCH_S} s") from None
    except (OSError, ValueError) as error:  # an address with a zero byte in it, or too long a one
        raise _failed(str(error)) from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.decode(errors="replace").strip()[-_MESSAGE_CHARS:]
    if done.returncode < 0:
        said = f"the answer was too long, or not to be read: {said or f'signal {-done.returncode}'}"
    raise _failed(said)


def _failed(got: str) -> MachineError:
    return MachineError(
        "the collateral cannot be fetched",
        got=got,
        remedy="check the address of the PCCS, and whether it can be reached from here",
    )


async def _fetch(url: str, quote: bytes) -> dcap_qvl.QuoteCollateralV3:
    return await dcap_qvl.get_collateral(url, quote)


def main() -> NoReturn:
    """The child: a quote comes in, its collateral or an error goes out."""
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA_BYTES_MAX, _DATA_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        fetched = asyncio.run(_fetch(sys.argv[1], sys.stdin.buffer.read()))
        sys.stdout.write(fetched.to_json())
        sys.stdout.flush()
        code = 0
    except (ValueError, OSError) as error:
        sys.stderr.write(str(error))
        sys.stderr.flush()
        code = 1
    os._exit(code)  # whatever threads there are


if __name__ == "__main__":
    main()
