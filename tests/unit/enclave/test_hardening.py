"""Hardening really holds: each thing is tried in a process that has been locked down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vaultline.enclave.hardening import harden
from vaultline.testing.attestation import devroot

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

#: Tries each thing after hardening and prints its outcome; argv: socket folder, readable, secret.
PROBE = r"""
import ctypes, json, os, resource, socket, sys, threading
from pathlib import Path
import numpy, onnxruntime
from vaultline.enclave.hardening import harden

folder, readable, secret, tcp, model = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
signal_target = os.getppid()
steps = harden(read_paths=[Path(readable)], socket_dirs=[Path(folder)], tcp=tcp == "tcp")

def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def thread():
    found = []
    worker = threading.Thread(target=lambda: found.append(attempt(lambda: open(secret))))
    worker.start()
    worker.join()
    return found[0]

def engine():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(bytes.fromhex(model), options)
    return session.run(None, {"x": numpy.array([-1, 2], numpy.float32)})[0].tolist()

def attempt(action):
    try:
        return action()
    except OSError as error:
        return "denied" if error.errno in (1, 13) else repr(error)

def listen(family, address):
    with socket.socket(family) as server:
        server.bind(address)
        server.listen()

def fork():
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)

results = {name: attempt(action) for name, action in {
    "fork": fork,
    "program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "read secret": lambda: open(secret).read(),
    "read secret in a thread": thread,
    "read vault": lambda: open(readable).read(),
    "write vault": lambda: open(readable, "w"),
    "write file": lambda: open(folder + "/new", "w"),
    "unix": lambda: listen(socket.AF_UNIX, folder + "/s"),
    "unlink": lambda: os.unlink(folder + "/s"),
    "tcp": lambda: listen(socket.AF_INET, ("127.0.0.1", 0)),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
    "ptrace": lambda: call(libc.ptrace, 16, signal_target, 0, 0),
    "dumpable": lambda: call(libc.prctl, 4, 1, 0, 0, 0),
    "unshare": lambda: call(libc.unshare, 0x10000000),
    "mount": lambda: call(libc.mount, b"none", b"/tmp", b"tmpfs", 0, None),
    "signal": lambda: os.kill(signal_target, 0),
    "core limit": lambda: resource.getrlimit(resource.RLIMIT_CORE),
    "own status": lambda: "NoNewPrivs:\t1" in open("/proc/self/status").read(),
    "engine": engine,
}.items()}
print(json.dumps([{s.name: [s.state, s.detail] for s in steps}, results]))
"""


def relu_model() -> bytes:
    """y = Relu(x), written by hand so that this test needs no model library."""

    def part(number: int, content: bytes) -> bytes:
        return bytes((number << 3 | 2, len(content))) + content

    def value(name: bytes) -> bytes:
        shape = part(2, part(1, b"\x08\x02"))
        return part(1, name) + part(2, part(1, b"\x08\x01" + shape))

    node = part(1, b"x") + part(2, b"y") + part(4, b"Relu")
    graph = part(1, node) + part(2, b"g") + part(11, value(b"x")) + part(12, value(b"y"))
    return b"\x08\x08" + part(7, graph) + part(8, part(1, b"") + b"\x10\x0d")


ENVIRONMENT = os.environ | {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"}


@cache
def probe(folder: Path, tcp: str) -> tuple[dict[str, Any], dict[str, Any]]:
    vault, secret = folder / "a.vault", folder.parent / "secret"
    vault.write_text("sealed")
    secret.write_text("secret")
    arguments = [str(folder), str(vault), str(secret), tcp, relu_model().hex()]
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    steps, outcomes = json.loads(result.stdout)
    return steps, outcomes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    base = tmp_path_factory.mktemp("hardening")
    inner = base / "run"
    inner.mkdir()
    yield inner


DENIED_BY = {
    "fork": "seccomp",
    "program": "seccomp",
    "exec": "seccomp",
    "netlink": "seccomp",
    "packet": "seccomp",
    "ptrace": "seccomp",
    "dumpable": "seccomp",
    "unshare": "seccomp",
    "mount": "seccomp",
    "read secret": "landlock",
    "read secret in a thread": "landlock",
    "write vault": "landlock",
    "write file": "landlock",
    "tcp": "landlock",
    "signal": "landlock",
}


@pytest.mark.parametrize("thing, step", DENIED_BY.items(), ids=DENIED_BY.keys())
def test_a_hardened_worker_is_denied(thing: str, step: str, folder: Path) -> None:
    steps, outcomes = probe(folder, "no tcp")
    if steps[step][0] != "done":
        pytest.skip(f"{step} is missing here: {steps[step][1]}")
    assert outcomes[thing] == "denied"


WORKS = {
    "read vault": "sealed",
    "unix": None,
    "unlink": None,
    "core limit": [0, 0],
    "own status": True,
    "engine": [0.0, 2.0],
}


@pytest.mark.parametrize("thing, expected", WORKS.items(), ids=WORKS.keys())
def test_a_hardened_worker_can_still(thing: str, expected: object, folder: Path) -> None:
    _, outcomes = probe(folder, "no tcp")
    assert outcomes[thing] == expected


def test_tcp_works_where_it_is_asked_for(folder: Path) -> None:
    _, outcomes = probe(folder, "tcp")
    assert outcomes["tcp"] is None


def test_the_steps_that_need_no_kernel_feature_are_done(folder: Path) -> None:
    steps, _ = probe(folder, "no tcp")
    assert list(steps) == [
        "core-limit",
        "not-dumpable",
        "no-new-privileges",
        "landlock",
        "seccomp",
    ]
    for name in ("core-limit", "not-dumpable", "no-new-privileges"):
        assert steps[name][0] == "done"


#: As an ordinary user: another process of the same user tries to read a worker's memory.
DUMPABLE = r"""
import ctypes, os, sys
from vaultline.enclave.hardening import harden
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
libc = ctypes.CDLL(None)
libc.prctl(4, 1, 0, 0, 0)  # a change of user has made the process not dumpable already

def reader_gets_in(pid):
    if (child := os.fork()) == 0:
        libc.prctl(4, 1, 0, 0, 0)
        try:
            os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def worker(hardened):
    ready_r, ready_w = os.pipe()
    stop_r, stop_w = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(stop_w)
        if hardened:
            harden(read_paths=[])
        os.write(ready_w, b"r")
        os.read(stop_r, 1)
        os._exit(0)
    os.read(ready_r, 1)
    found = reader_gets_in(pid)
    os.close(stop_w)
    os.waitpid(pid, 0)
    return found

print(worker(False), worker(True))
"""


def test_another_process_of_the_same_user_cannot_read_its_memory() -> None:
    result = subprocess.run(
        [sys.executable, "-c", DUMPABLE],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    before, after = result.stdout.split()
    if before != "True":
        pytest.skip("processes of one user cannot read each other here anyway")
    assert after == "False"


def test_a_step_that_this_machine_lacks_is_named() -> None:
    """Threads that run already escape Landlock, so the step does not count as done."""
    program = (
        "import threading, json\n"
        "from vaultline.enclave.hardening import harden\n"
        "stop = threading.Event()\n"
        "threading.Thread(target=stop.wait).start()\n"
        "steps = harden(read_paths=[])\n"
        "stop.set()\n"
        "print([s.detail for s in steps if s.name == 'landlock' and s.state == 'missing'])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env=ENVIRONMENT,
        check=True,
    )
    assert "not covered" in result.stdout or "landlock" in result.stdout.lower()


def test_under_gramine_every_step_is_skipped_by_name() -> None:
    steps = harden(read_paths=[], platform="gramine")
    assert {step.state for step in steps} == {"skipped"}
    assert len(steps) == 5


#: Asks for a report, in a folder that stands for the kernel's, and writes elsewhere.
REPORTS = r"""
import os, sys
from pathlib import Path
from vaultline.enclave import hardening

reports, other = map(Path, sys.argv[1:3])
hardening.TSM_REPORTS = reports
mine = [reports] if sys.argv[3] == "mine" else []
steps = {step.name: step.state for step in hardening.harden(read_paths=mine)}
if steps["landlock"] != "done":
    sys.exit(77)
request = reports / "request"
if not mine:
    for denied in (request.mkdir, (reports / "outblob").read_bytes):
        try:
            denied()
        except PermissionError:
            continue
        sys.exit("not denied to a worker of another kind")
    sys.exit(0)
request.mkdir()
descriptor = os.open(reports / "inblob", os.O_WRONLY)
os.write(descriptor, bytes(64))
assert (reports / "outblob").read_bytes() == b"report"
request.rmdir()
for denied in (
    lambda: (reports / "new").write_bytes(b""),
    lambda: os.open(other, os.O_WRONLY),
    lambda: (other.parent / "folder").mkdir(),
):
    try:
        denied()
    except PermissionError:
        continue
    sys.exit("not denied")
"""


@pytest.mark.parametrize("whose", ["mine", "another's"])
def test_only_a_confidential_vm_s_worker_may_ask_for_reports_and_it_writes_nothing_else(
    tmp_path: Path, whose: str
) -> None:
    reports, other = tmp_path / "report", tmp_path / "other"
    reports.mkdir()
    other.write_bytes(b"")
    (reports / "inblob").write_bytes(b"")
    (reports / "outblob").write_bytes(b"report")
    result = subprocess.run(
        [sys.executable, "-c", REPORTS, str(reports), str(other), whose],
        capture_output=True,
        timeout=60,
        env=ENVIRONMENT,
        check=False,
    )
    if result.returncode == 77:
        pytest.skip("no Landlock here")
    assert result.returncode == 0, result.stderr.decode()


#: A worker's start, as its `main` makes it, then a try to open a file that it has no use for.
STARTED = r"""
import sys
from queue import SimpleQueue
from vaultline.core.control import BeatLine, WorkerConfig
from vaultline.enclave.process import start

class Lines:
    ready = SimpleQueue()
    def say(self, line):
        getattr(line, "hardening", None) and self.ready.put(line.hardening)
    def wires(self, on_end):
        return SimpleQueue()

vault, platform, secret = sys.argv[1:]
config = WorkerConfig(
    name="w", platform="process", provider="simulated", platform_file=platform, vault=vault,
    control="tcp:127.0.0.1:0", data=(), runtime_dir="/",
)
started = start(config, Lines(), lambda: BeatLine(busy_s=0.0, frames=0), vaults=(vault,), data=())
print({step.name: step.state for step in Lines.ready.get()}["landlock"])
print(len(started.vaults))
try:
    print(open(secret).read())
except PermissionError:
    print("denied")
"""


def test_a_launcher_cannot_have_a_worker_read_everything_by_calling_it_a_vault(
    tmp_path: Path,
) -> None:
    platform, secret = tmp_path / "platform.json", tmp_path / "secret"
    platform.write_bytes(devroot().platform)
    secret.write_text("of the machine's")
    done = subprocess.run(
        [sys.executable, "-c", STARTED, "/", str(platform), str(secret)],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    landlock, opened, said = done.stdout.splitlines()
    if landlock != "done":
        pytest.skip("no Landlock here")
    assert (opened, said) == ("1", "denied")
