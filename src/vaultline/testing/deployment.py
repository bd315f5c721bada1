"""Real deployments for tests: a plan as files, the command line as a process, its whole family.

What a test needs to put a run together, to disturb it, and to see that nothing is left of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vaultline.bench.rig import Rig
from vaultline.core.errors import InputError
from vaultline.core.plan import write_plan
from vaultline.core.serde import from_json
from vaultline.owner.keyfile import load_kek, write_keyfile

_POLL_S = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """A sealed plan as the files that ``vaultline run`` takes."""

    plan: Path
    vault: Path
    key: Path
    kek: Path
    policy: Path

    def arguments(self, **changes: Path) -> list[str]:
        """The options that name these files, some of them replaced."""
        paths = {name: getattr(self, name) for name in self.__slots__} | changes
        return [part for name, path in paths.items() for part in (f"--{name}", str(path))]


def write_files(rig: Rig, folder: Path) -> Files:
    """Write a rig's plan and keys beside its vault and trust."""
    kek_path = folder / "kek.jwk"
    files = Files(
        plan=folder / "plan.json",
        vault=rig.vault,
        key=folder / "owner.key",
        kek=kek_path,
        policy=rig.trust["policy"],
    )
    files.plan.write_bytes(write_plan(rig.plan))
    write_keyfile(files.key, rig.keys, load_kek(kek_path, create=True))
    return files


def run_command(files: Files, *, source: str, sink: Path, **changes: Path) -> list[str]:
    """``vaultline run`` on these files, with simulated enclaves allowed."""
    verb = [sys.executable, "-m", "vaultline", "run", "--source", source, "--sink", str(sink)]
    return [*verb, *files.arguments(**changes), "--allow-simulated"]


def read_sink(path: Path) -> list[dict[str, Any]]:
    """Every line of a sink.

    Raises:
        InputError: a line that is not a whole JSON document with its newline.
    """
    *lines, rest = path.read_bytes().split(b"\n")
    if rest:
        raise InputError("the sink ends in the middle of a line", got=f"{len(rest)} bytes")
    return [from_json(line, dict[str, Any], what="a sink's line") for line in lines]


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that can't be mistaken for a later one with its number."""

    pid: int
    started: int
    command: str

    @property
    def alive(self) -> bool:
        """Still running; a zombie that waits for its parent is not."""
        fields = _stat(self.pid)
        return fields is not None and int(fields[19]) == self.started and fields[0] not in "ZX"


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on: the name before it may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def family(pid: int) -> list[ProcessId]:
    """A process and all of its descendants that run now."""
    table: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))) is not None:
            table[int(entry.name)] = fields
    members = [pid] if pid in table else []
    for member in members:  # grows while it is walked
        members += [child for child, fields in table.items() if int(fields[1]) == member]
    return [ProcessId(member, int(table[member][19]), _command(member)) for member in members]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    """Poll until a condition holds.

    Raises:
        TimeoutError: it did not in time.
    """
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not within {timeout_s} s")
        time.sleep(_POLL_S)


class RunningOwner:
    """``vaultline run`` as a process of its own, with its sink and its family under watch."""

    def __init__(self, command: Sequence[str], sink: Path, *, temporary: Path) -> None:
        environment = {**os.environ, "TMPDIR": str(temporary), "NO_COLOR": "1", "COLUMNS": "200"}
        self.sink = sink
        self.known: list[ProcessId] = []
        self.popen = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        self._said: dict[str, list[tuple[float, str]]] = {"out": [], "err": []}
        self._readers = [
            threading.Thread(target=self._read, args=(name, pipe), daemon=True)
            for name, pipe in (("out", self.popen.stdout), ("err", self.popen.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        for line in pipe:
            self._said[name].append((time.monotonic(), line.decode(errors="replace")))

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return "".join(text for _, text in self._said["err"])

    def said_at(self, words: str) -> float | None:
        """When (``time.monotonic``) a line with these words came on standard error."""
        return next((when for when, text in self._said["err"] if words in text), None)

    def wait_results(self, count: int, timeout_s: float = 60.0) -> None:
        """Until that many lines are in the sink, and the family is known.

        Raises:
            TimeoutError, RuntimeError: too slow, or the run ended before.
        """

        def enough() -> bool:
            if self.popen.poll() is not None:
                raise RuntimeError(f"the run ended early, {self.popen.returncode}: {self.errors}")
            return self.sink.exists() and self.sink.read_bytes().count(b"\n") >= count

        wait_until(enough, timeout_s=timeout_s, what=f"{count} results")
        self.known = family(self.popen.pid)

    def wait_members(self, module: str, count: int, timeout_s: float = 60.0) -> None:
        """Until so many processes of the family run a module of ours.

        Raises:
            TimeoutError: too slow.
        """

        def enough() -> bool:
            self.known = family(self.popen.pid)
            return len(self.members(module)) >= count

        wait_until(enough, timeout_s=timeout_s, what=f"{count} processes of {module}")

    def members(self, module: str) -> list[ProcessId]:
        """Those of the family that run a module of ours."""
        return [process for process in self.known if f"-m vaultline.{module}" in process.command]

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code, once the process and its output have ended."""
        code = self.popen.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        return code

    def wait_gone(self, timeout_s: float = 10.0) -> None:
        """Until nobody of the family is left.

        Raises:
            TimeoutError: naming those who are.
        """
        try:
            wait_until(lambda: not self.survivors(), timeout_s=timeout_s, what="the family's end")
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.survivors()}") from None

    def survivors(self) -> list[ProcessId]:
        """Those of the family that still run."""
        return [process for process in self.known if process.alive]

    def end(self) -> None:
        """Kill whatever is left, by process id: for a test's last lines."""
        if self.popen.poll() is None:
            self.known += family(self.popen.pid)
        for process in self.survivors():
            try:
                os.kill(process.pid, 9)
            except ProcessLookupError:
                continue
        self.wait()
