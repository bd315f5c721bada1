"""How a server's memory is shared out, and what its enclave is granted."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from vaultline.channel.requests import OVERHEAD_BYTES
from vaultline.core.errors import InfeasibleError, RefusedError
from vaultline.core.serving import CELL_BYTES
from vaultline.core.tensors import TensorSpec
from vaultline.owner.keyfile import SealedKeys, new_keys
from vaultline.owner.seal import seal_vault
from vaultline.owner.served import ServedModel
from vaultline.owner.server_release import served_digest, server_grant, server_memory
from vaultline.testing import serving
from vaultline.testing.serving import MIB
from vaultline.testing.vaults import small_stage


def served(name: str, *, groups: int = 2, workspace: int = 1000, side: int = 8) -> ServedModel:
    return ServedModel(
        name=name,
        vault=f"{name}.vault",
        keys=f"{name}.keys",
        model_digest="00" * 32,
        plan_digest=name.encode().ljust(32, b"-"),
        isa="portable",
        engine_version="1",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, side)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 2)),),
        groups=tuple((number, number + 1) for number in range(groups)),
        workspace_bytes=workspace,
        facts=serving.model(name, *[serving.group()] * groups),
    )


def test_the_neediest_model_decides_what_is_held_all_the_time() -> None:
    models = [served("a", workspace=5 * MIB), served("b", side=4096)]
    memory = server_memory(models, cores=3, memory_bytes=93 * MIB)
    assert memory.workspace_bytes == 5 * MIB
    assert memory.message_bytes == models[1].input_layout.message_bytes + OVERHEAD_BYTES
    assert memory.cache_bytes == 0
    assert memory.fixed_bytes == 3 * (5 * MIB + CELL_BYTES) + 2 * memory.message_bytes
    exact = server_memory(models, cores=3, memory_bytes=memory.fixed_bytes)
    assert exact == memory
    with pytest.raises(InfeasibleError, match="too little protected memory"):
        server_memory(models, cores=3, memory_bytes=memory.fixed_bytes - 1)


def test_the_page_cache_gets_what_sessions_and_messages_leave() -> None:
    models = [replace(served(name, groups=1), paged=True) for name in "ab"]
    memory = server_memory(models, cores=2, memory_bytes=93 * MIB)
    sessions = 2 * sum(model.facts.fixed_bytes for model in models)
    group = models[0].facts.groups[0]
    messages = 2 * group.frames_max * (models[0].facts.input_bytes + group.output_bytes)
    assert memory.workspace_bytes == 0
    assert memory.fixed_bytes + sessions + messages == 93 * MIB
    least = 93 * MIB - memory.cache_bytes + models[0].workspace_bytes
    assert server_memory(models, cores=2, memory_bytes=least).cache_bytes == 1000
    with pytest.raises(InfeasibleError):
        server_memory(models, cores=2, memory_bytes=least - 1)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[ServedModel, SealedKeys]]:
    folder: Path = tmp_path_factory.mktemp("vaults")
    found = []
    for name, groups in (("a", 2), ("b", 1)):
        model, keys = served(name, groups=groups), new_keys()
        stages = [small_stage((100,), stage=g, stages=groups) for g in range(groups)]
        sealing = seal_vault(
            folder / name,
            stages,
            model_key=keys.model_key,
            plan_digest=model.plan_digest,
            model_digest="00" * 32,
        )
        found.append((model, keys.with_sealing(sealing)))
    return found


def test_a_grant_opens_every_group_of_every_model_and_is_the_servers_alone(
    sealed: list[tuple[ServedModel, SealedKeys]],
) -> None:
    models = [model for model, _ in sealed]
    memory = server_memory(models, cores=2, memory_bytes=93 * MIB)
    one, other = (server_grant(sealed, memory, cores=2, memory_bytes=93 * MIB) for _ in range(2))
    assert [len(model.sections) for model in one.models] == [2, 1]
    for (model, keys), access in zip(sealed, one.models, strict=True):
        sealing = keys.sealing_for(model.plan_digest)
        assert access.sections[-1] == sealing.access(keys.model_key, len(model.groups) - 1)
    assert one.plan_digest == served_digest(models)
    assert (one.workspace_bytes, one.message_bytes) == (
        memory.workspace_bytes,
        memory.message_bytes,
    )
    assert one.models == other.models
    assert one.secret != other.secret and one.deployment != other.deployment


def test_what_is_served_has_a_digest_of_its_own() -> None:
    a, b = served("a"), served("b")
    assert len({served_digest(models) for models in ([a], [b], [a, b], [b, a], [])}) == 5


def test_keys_of_another_sealing_are_refused(sealed: list[tuple[ServedModel, SealedKeys]]) -> None:
    (model, _), (_, keys) = sealed
    memory = server_memory([model], cores=1, memory_bytes=93 * MIB)
    with pytest.raises(RefusedError):
        server_grant([(model, keys)], memory, cores=1, memory_bytes=93 * MIB)
