"""A whole deployment on this machine, in a folder: for the demo, the benchmarks and tests."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from vaultline.core.cluster import Cluster, Device, Host
from vaultline.core.plan import Plan
from vaultline.enclave.measurement import measure
from vaultline.graph.structure import Model
from vaultline.owner.accelerator import ACCELERATOR_FILE, create_accelerator
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.deploy import compile_stages, launch_workers, stage_secrets
from vaultline.owner.devroot import (
    COLLATERAL_FILE,
    PLATFORM_FILE,
    create_devroot,
    draft_policy,
)
from vaultline.owner.disclosure import Disclosure
from vaultline.owner.keyfile import SealedKeys, new_keys
from vaultline.owner.seal import seal_vault
from vaultline.owner.session import Session, SessionSettings
from vaultline.owner.starting import Place

POLICY_FILE = "policy.yaml"
#: A root that is valid from this instant would be refused by a clock that is a little behind.
_BACKDATED = datetime.timedelta(minutes=5)


def make_trust(folder: Path) -> dict[str, Path]:
    """Write a development root's files, an accelerator's key, and a policy that accepts both: the
    code that is installed here, and that key."""
    create_devroot(folder, now=datetime.datetime.now(datetime.UTC) - _BACKDATED)
    accelerator = create_accelerator(folder)
    policy = folder / POLICY_FILE
    policy.write_text(draft_policy(folder, [measure()], [accelerator.public_key]))
    return {
        "policy": policy,
        "accelerator": folder / ACCELERATOR_FILE,
        "platform": folder / PLATFORM_FILE,
        "collateral": folder / COLLATERAL_FILE,
    }


def local_cluster(devices: int, *, memory_bytes: int = 64 << 30, cores: int = 1) -> Cluster:
    """This machine as a cluster of equal simulated enclaves."""
    host = Host(name="local", cores=devices * cores, memory_bytes=devices * memory_bytes)
    enclave = Device(
        name="enclave",
        host="local",
        kind="simulated",
        trust="attested",
        memory_bytes=memory_bytes,
        cores=cores,
        count=devices,
    )
    return Cluster(owner="local", hosts=(host,), devices=(enclave,), links=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """A sealed plan with everything to run it under a development root.

    Attributes:
        disclosure: what untrusted stages may see.
    """

    plan: Plan
    vault: Path
    keys: SealedKeys
    trust: dict[str, Path]
    disclosure: Disclosure = field(default_factory=Disclosure)

    def session(
        self,
        settings: SessionSettings | None = None,
        places: dict[str, Place] | None = None,
    ) -> Session:
        """A session that has not been opened.

        Raises:
            RefusedError: untrusted stages would see or get more than is allowed.
        """
        self.disclosure.check(self.plan)
        appraiser = Appraiser(
            policy=load_policy(self.trust["policy"]),
            collateral=load_collateral({"simulated": self.trust["collateral"]}),
            allow_simulated=True,
        )
        return Session(
            self.plan,
            self.disclosure.attach(self.plan, stage_secrets(self.plan, self.keys)),
            launch_workers(
                self.plan,
                self.vault,
                platform_file=self.trust["platform"],
                places=places or {},
                accelerator_key=self.trust.get("accelerator"),
            ),
            appraiser.appraise_now,
            settings or SessionSettings(),
        )


def make_rig(
    model: Model,
    plan: Plan,
    folder: Path,
    trust: dict[str, Path] | None = None,
    disclosure: Disclosure | None = None,
) -> Rig:
    """Compile and seal a plan's stages into ``folder``."""
    stages = compile_stages(model, plan)
    keys = new_keys()
    vault = folder / f"{plan.model_name}-{plan.digest.hex()[:8]}.vault"
    sealing = seal_vault(
        vault,
        stages,
        model_key=keys.model_key,
        plan_digest=plan.digest,
        model_digest=plan.model_digest,
    )
    return Rig(
        plan=plan,
        vault=vault,
        keys=keys.with_sealing(sealing),
        trust=trust or make_trust(folder / "trust"),
        disclosure=disclosure or Disclosure(),
    )
