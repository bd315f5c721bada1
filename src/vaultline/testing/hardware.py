"""Machines with SGX, TDX or SEV-SNP for tests: what stands for the processor and its firmware.

A real worker is started in the real way; only what lies below it is replaced. `QuotingService`
signs with the keys of the synthetic vectors, as a platform's quoting enclave or secure processor
does, and verifiers accept it under the vectors' own root alone.

- ``gramine-sgx``: a program that takes a signed folder, runs what its manifest says with nothing
  but the manifest's environment, and shows ``/dev/attestation`` inside (`python -m` this module).
- a confidential VM: connections start workers, as systemd does with ``Accept=yes``, on a kernel
  whose configfs-tsm is `testing.tsm`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaultline.core.errors import InputError

_REPORT_DATA_BYTES = 64
_TIMEOUT_S = 20.0
#: Runs a worker's module on fake hardware: kind of hardware, quoting service, module.
_INSIDE = (
    "import runpy, sys; from vaultline.testing import hardware; "
    "hardware.install(sys.argv[1], sys.argv[2]); "
    "runpy.run_module(sys.argv[3], run_name='__main__', alter_sys=True)"
)


class QuotingService:
    """Signs report data on a Unix socket until closed; counts what it signed.

    Args:
        sign: evidence over 64 bytes of report data.
    """

    def __init__(self, path: Path, sign: Callable[[bytes], bytes]) -> None:
        self.path, self._sign = path, sign
        self.signed = 0
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.bind(str(path))
        self._sock.listen(16)
        threading.Thread(target=self._serve, name="quoting", daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError:
                return
            with sock, contextlib.suppress(OSError):
                sock.settimeout(_TIMEOUT_S)
                data = sock.recv(_REPORT_DATA_BYTES, socket.MSG_WAITALL)
                if len(data) == _REPORT_DATA_BYTES:
                    self.signed += 1
                    sock.sendall(self._sign(data))

    def close(self) -> None:
        """Sign nothing any more."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


def ask(path: str, data: bytes) -> bytes:
    """Evidence over report data, from a quoting service; OSError where it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_TIMEOUT_S)
        sock.connect(path)
        sock.sendall(data)
        parts = []
        while part := sock.recv(1 << 16):
            parts.append(part)
    if not parts:
        raise OSError("the quoting service does not answer")
    return b"".join(parts)


class FakeAttestation:
    """Gramine's ``/dev/attestation``: 64 bytes written, then a quote over them; anew each time."""

    def __init__(self, quoting: str) -> None:
        self._quoting, self._data = quoting, bytes(_REPORT_DATA_BYTES)

    def __truediv__(self, name: str) -> FakeAttestation._File:
        if name not in ("user_report_data", "quote"):
            raise FileNotFoundError(name)
        return FakeAttestation._File(self, name)

    class _File:
        def __init__(self, device: FakeAttestation, name: str) -> None:
            self._device, self._name = device, name

        def write_bytes(self, data: bytes) -> int:
            """Only report data can be written, and not more than 64 bytes."""
            if self._name != "user_report_data" or len(data) > _REPORT_DATA_BYTES:
                raise PermissionError(self._name)
            self._device._data = data.ljust(_REPORT_DATA_BYTES, b"\0")
            return len(data)

        def read_bytes(self) -> bytes:
            """A quote."""
            if self._name != "quote":
                return self._device._data
            return ask(self._device._quoting, self._device._data)


def install(kind: str, quoting: str) -> None:
    """In a worker's process, before its main module: the hardware that it will find.

    Raises:
        InputError: no such hardware.
    """
    if kind == "sgx":
        from vaultline.enclave import gramine_quotes

        device: Any = FakeAttestation(quoting)
        gramine_quotes.GramineProvider.__init__.__defaults__ = (device,)
    elif kind in ("tdx", "snp"):
        from vaultline.enclave import tsm_quotes
        from vaultline.testing.tsm import FakeTsm

        system = FakeTsm(
            provider={"tdx": "tdx_guest", "snp": "sev_guest"}[kind],
            report=lambda inblob: ask(quoting, inblob),
            certificates=b"" if kind == "snp" else None,
        )
        defaults = tsm_quotes.TsmProvider.__init__.__defaults__ or ()
        tsm_quotes.TsmProvider.__init__.__defaults__ = (*defaults[:-1], system)
    else:
        raise InputError("no such hardware", got=kind)


def write_gramine(folder: Path, quoting: Path) -> None:
    """Write a program ``gramine-sgx`` into a folder for the PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(__file__).resolve().parents[2]
    words = ["exec", "env", f"PYTHONPATH={source}", sys.executable, "-m", __name__, str(quoting)]
    program = folder / "gramine-sgx"
    program.write_text(f'#!/bin/sh\n{shlex.join(words)} "$@"\n')
    program.chmod(0o755)


def sign_manifest(folder: Path) -> None:
    """What ``gramine-sgx-sign`` leaves: the manifest that is measured, and a signature file."""
    (folder / "worker.manifest.sgx").write_bytes((folder / "worker.manifest").read_bytes())
    (folder / "worker.sig").write_bytes(bytes(1808))


def run_gramine(quoting: str, name: str) -> None:
    """As ``gramine-sgx NAME`` does: become what the manifest says; does not return.

    Raises:
        InputError: there is no signed manifest, or one that allows what it must not.
    """
    path = Path(f"{name}.manifest.sgx")
    if not (path.is_file() and Path(f"{name}.sig").is_file()):
        raise InputError("no signed manifest", got=str(path.absolute()))
    manifest = tomllib.loads(path.read_text())
    argv, sgx = manifest["loader"]["argv"], manifest["sgx"]
    if sgx["remote_attestation"] != "dcap" or sgx["debug"] or argv[-2] != "-m":
        raise InputError("not a manifest for an enclave that attests", got=str(argv))
    environment = {key: str(value) for key, value in manifest["loader"]["env"].items()}
    environment.pop("LD_LIBRARY_PATH")  # Gramine's libc, which is only there with Gramine
    python = manifest["libos"]["entrypoint"]
    os.execve(python, [*argv[:-2], "-c", _INSIDE, "sgx", quoting, argv[-1]], environment)


@contextmanager
def confidential_vm(kind: str, quoting: Path, module: str = "vaultline.enclave") -> Iterator[str]:
    """A VM whose socket starts a worker for each connection: where to connect."""
    listener = socket.create_server(("127.0.0.1", 0))
    workers: list[subprocess.Popen[bytes]] = []

    def serve() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            with sock:
                command = [sys.executable, "-P", "-B", "-c", _INSIDE, kind, str(quoting), module]
                workers.append(subprocess.Popen(command, stdin=sock.fileno(), stdout=sock.fileno()))

    thread = threading.Thread(target=serve, name=f"vm-{kind}", daemon=True)
    thread.start()
    try:
        yield f"tcp:127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for worker in workers:
            try:
                worker.wait(5.0)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


if __name__ == "__main__":
    run_gramine(*sys.argv[1:3])
