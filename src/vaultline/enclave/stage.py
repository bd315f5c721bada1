"""A pipeline's stage in memory: what its grant opens, loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vaultline.attest.grant import GrantKey
from vaultline.attest.stage_grant import Grant, check_released
from vaultline.core.control import BufferKind
from vaultline.core.program import StageProgram
from vaultline.enclave.evidence import Provider
from vaultline.enclave.executor import Executor, PagedRefusedError, check_engine
from vaultline.enclave.ledger import Ledger
from vaultline.enclave.pipeline import StageBuffers
from vaultline.enclave.process import Process
from vaultline.enclave.vault import VaultSection


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage that is ready for frames; ``key``: what it was granted to."""

    grant: Grant
    key: GrantKey
    program: StageProgram
    executor: Executor
    buffers: StageBuffers


def load_stage(
    grant: Grant, key: GrantKey, process: Process, *, mapped: bool
) -> tuple[LoadedStage, Mapping[BufferKind, int]]:
    """Load the stage; ``mapped``: see ``VaultSection``.

    Raises:
        VaultlineError: the vault or its program is not what was sealed for this machine and
            budget, or the next stage would see what it must not.
    """
    section = VaultSection(process.vaults[0], grant, mapped=mapped)
    program = section.program
    if program.settings.next_untrusted:  # held against the owner's policy, not against the plan
        check_released(grant.release, [spec.name for spec in program.specs(program.outputs)])
    check_engine(program, process.isa)
    ledger = Ledger(program.settings.budget_bytes)
    buffers = StageBuffers(program, ledger)
    executor = executor_type(program, process.provider)(program, section, ledger)
    return LoadedStage(grant, key, program, executor, buffers), ledger.held


def executor_type(program: StageProgram, provider: Provider) -> type[Executor]:
    """What runs the stage: in memory, or on a page cache, which only simulated enclaves have.

    Raises:
        PagedRefusedError: a paged stage in any other enclave.
    """
    if program.settings.mode != "paged":
        return Executor
    if provider.kind != "simulated":
        raise PagedRefusedError("paging is simulated", got=provider.kind, remedy="plan it streamed")
    from vaultline.enclave.simulated_executor import PagedExecutor

    return PagedExecutor
