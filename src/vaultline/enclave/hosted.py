"""A model that is installed on a server, and what all models of the server share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vaultline.attest.server_grant import ServerGrant
from vaultline.channel.requests import OVERHEAD_BYTES
from vaultline.core.errors import MachineError
from vaultline.core.section import SectionAccess
from vaultline.core.serving import CELL_BYTES
from vaultline.enclave.commands import CommandError
from vaultline.enclave.executor import (
    FrameBuffer,
    PagedRefusedError,
    ProgramRefusedError,
    check_engine,
)
from vaultline.enclave.groups import Group, GroupExecutor, check_chain, release_frames
from vaultline.enclave.process import Process
from vaultline.enclave.shared_ledger import Account, SharedLedger
from vaultline.enclave.vault import VaultSection

if TYPE_CHECKING:
    from vaultline.enclave.simulated_epc import PageCache


#: Requests are numbered in 64 bits.
_NUMBER_MAX = (1 << 64) - 1


class GrantedMemoryError(MachineError):
    """A model needs more of what servers hold for all models than the grant says."""


class Shared:
    """What a server holds from its start to its end, and shares among its models.

    Attributes:
        cells: where sealed requests and answers are, one of each at a time.
        cache: of paged models, once there is one.
    """

    def __init__(self, grant: ServerGrant, process: Process, *, mapped: bool) -> None:
        """Take it; ``mapped``: see ``VaultSection``.

        Raises:
            BudgetExceededError: the memory doesn't suffice.
        """
        self.grant, self._process, self._mapped = grant, process, mapped
        self.ledger = ledger = SharedLedger(grant.memory_bytes)
        self.workspaces = [
            ledger.take("idle", grant.workspace_bytes, "the workspaces") for _ in range(grant.cores)
        ]
        self.cells = [ledger.take("io", grant.message_bytes, "sealed messages") for _ in range(2)]
        ledger.reserve("io", grant.cores * CELL_BYTES, "the ciphertext of weights")
        ledger.reserve("idle", grant.cache_bytes, "the page cache")
        self.cache: PageCache | None = None

    def group(self, number: int, access: SectionAccess, account: Account) -> Group:
        """Open a step group of a model.

        Raises:
            VaultlineError: its section is not what was sealed for this machine and this memory.
        """
        section = VaultSection(self._process.vaults[number], access, mapped=self._mapped)
        check_engine(section.program, self._process.isa)
        return Group(section, self.ledger, self._executors(section, account))

    def _executors(self, section: VaultSection, account: Account) -> Sequence[GroupExecutor]:
        """One for each core: in memory, or on the page cache of a simulated enclave."""
        program = section.program
        if program.settings.mode != "paged":
            if program.resident_bytes:
                raise ProgramRefusedError("not compiled for a server: some weights always stay")
            spaces = self.workspaces
            return [GroupExecutor(program, section, account, space) for space in spaces]
        if self._process.provider.kind != "simulated":
            got = self._process.provider.kind
            raise PagedRefusedError("paging is simulated", got=got, remedy="prepare it streamed")
        from vaultline.enclave.simulated_groups import open_shared_cache, paged_executors

        if self.cache is None:
            self.cache = open_shared_cache(self.grant.cache_bytes, program.settings.page_mode)
        return paged_executors(section, account, self.cache, self.grant.cores)


class HostedModel:
    """A model's step groups, and the messages of requests that wait between them.

    Attributes:
        waiting: by request, the next group and the message for it.
    """

    def __init__(self, shared: Shared, number: int) -> None:
        """Install it: everything or, if that fails, nothing.

        Raises:
            VaultlineError: the vault is not what was sealed for this machine and this memory.
        """
        self.waiting: dict[int, tuple[int, FrameBuffer]] = {}
        self._running: set[int] = set()
        self.groups: list[Group] = []
        self._ledger = shared.ledger
        self._account = Account(shared.ledger)
        try:
            for access in shared.grant.models[number].sections:
                self.groups.append(shared.group(number, access, self._account))
            check_chain(self.groups)
            self._check_messages(shared.grant.message_bytes)
        except BaseException:
            self.close()
            raise

    def _check_messages(self, most_bytes: int) -> None:
        ends = (self.groups[0].before, self.groups[-1].after)
        size = max(layout.message_bytes for layout in ends) + OVERHEAD_BYTES
        if size > most_bytes:
            raise GrantedMemoryError(
                "a model's messages are larger than the grant says",
                got=f"{size:,} bytes",
                expected=f"at most {most_bytes:,}",
            )

    def enter(self, numbers: Sequence[int]) -> None:
        """Requests are about to run the first group.

        Raises:
            CommandError: one of them is here already, or twice, or is no number of a request.
        """
        here = self.waiting.keys() | self._running
        in_range = all(0 <= number <= _NUMBER_MAX for number in numbers)
        if not in_range or len(set(numbers)) < len(numbers) or not here.isdisjoint(numbers):
            raise CommandError("the host named a request that is here already, or none")
        self._running.update(numbers)

    def go_on(self, numbers: Sequence[int], group: int) -> list[FrameBuffer]:
        """Requests are about to run a later group: their messages.

        Raises:
            CommandError: one of them does not wait for that group.
        """
        due = all(self.waiting.get(number, (0,))[0] == group for number in numbers)
        if not due or len(set(numbers)) < len(numbers):
            raise CommandError("the host named a request that does not wait for that step group")
        self._running.update(numbers)
        return [self.waiting.pop(number)[1] for number in numbers]

    def leave(self, numbers: Sequence[int]) -> None:
        """Requests have run, or failed to."""
        self._running.difference_update(numbers)

    def wait(self, group: int, messages: Sequence[tuple[int, FrameBuffer]]) -> None:
        """Requests wait for their next group, each with its message."""
        self.waiting.update((number, (group, frame)) for number, frame in messages)

    def close(self) -> None:
        """Forget everything; nothing of it may run."""
        for group in self.groups:
            group.close()
        self.groups.clear()
        release_frames(self._ledger, [frame for _, frame in self.waiting.values()])
        self.waiting.clear()
        self._account.close()
