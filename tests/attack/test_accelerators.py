"""An untrusted stage, attacked: plans edited by hand, workers and keys exchanged.

Whatever a plan claims, each enclave holds what leaves it against the owner's policy: refusals here
come from real workers. That an accelerator's memory holds no more than it may: `test_canary`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from vaultline.attest.refusals import EvidenceRefused, KindRefused, PinnedKeyRefused
from vaultline.attest.stage_grant import TensorNotReleased
from vaultline.bench.cutting import cut_plan
from vaultline.bench.rig import Rig, make_rig, make_trust
from vaultline.channel.chunks import VaultOtherPlanError
from vaultline.core.errors import InputError, VaultlineError
from vaultline.core.hostline import LaunchWorker, Start
from vaultline.core.plan import Plan, read_plan, write_plan
from vaultline.core.serde import canonical_json
from vaultline.graph.model import load_model
from vaultline.graph.structure import Model
from vaultline.owner.accelerator import ACCELERATOR_FILE, create_accelerator
from vaultline.owner.appraisal import Appraiser, load_collateral, load_policy
from vaultline.owner.deploy import launch_workers, stage_secrets
from vaultline.owner.disclosure import Disclosure, WeightsNotDisclosed
from vaultline.owner.hostlink import WorkerRefusedError
from vaultline.owner.release import RefusedByPeerError
from vaultline.owner.session import Session, SessionSettings
from vaultline.testing.privacy import disclosure, on_accelerators

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits.onnx"
#: What the owner measured, and the limit of the owner's policy.
LEAKAGE = {0: 1.0, 10: 0.8, 27: 0.2, 34: 0.2, 44: 0.1, 56: 0.1}
LIMIT = 0.3


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(DIGITS)


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_trust(tmp_path_factory.mktemp("trust"))


def unchecked(
    rig: Rig, change: Callable[[LaunchWorker], LaunchWorker] = lambda worker: worker
) -> Session:
    """A session as of an owner whose own checks of the plan are gone: what is left are the
    grants, made from policy and report as always, and the enclaves."""
    appraiser = Appraiser(
        policy=load_policy(rig.trust["policy"]),
        collateral=load_collateral({"simulated": rig.trust["collateral"]}),
        allow_simulated=True,
    )
    workers = launch_workers(
        rig.plan,
        rig.vault,
        platform_file=rig.trust["platform"],
        places={},
        accelerator_key=rig.trust["accelerator"],
    )
    return Session(
        rig.plan,
        rig.disclosure.attach(rig.plan, stage_secrets(rig.plan, rig.keys)),
        [change(worker) for worker in workers],
        appraiser.appraise_now,
        SessionSettings(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A plan as somebody edited it, with what it claims, and what the owner really measured."""

    cuts: tuple[int, ...]
    untrusted: tuple[int, ...] = (1,)
    leakage: float = 0.2
    limit: float = LIMIT
    measured: Mapping[int, float] = field(default_factory=lambda: LEAKAGE)
    allowed: float | None = LIMIT

    def plan(self, model: Model) -> Plan:
        return on_accelerators(
            cut_plan(model, self.cuts), self.untrusted, leakage=self.leakage, limit=self.limit
        )

    def owner(self, model: Model) -> Disclosure:
        return disclosure(model, self.measured, self.allowed, "all")


EDITS = {
    "the accelerator's stage begins at an earlier cut": Edit(cuts=(10, 44)),
    "the leakage is written down as lower": Edit(cuts=(10, 44), leakage=0.0),
    "the limit is written down as higher": Edit(cuts=(10, 44), leakage=0.8, limit=1.0),
    "the cut was never measured": Edit(cuts=(30, 44)),
    "the stage's end was never measured": Edit(cuts=(27, 50)),
    "a later cut of the stage leaks more": Edit(
        cuts=(27, 44), measured={**LEAKAGE, 34: 0.4}
    ),
    "a second accelerator computes a cut that leaks more": Edit(
        cuts=(27, 34, 44), untrusted=(1, 2), measured={**LEAKAGE, 44: 0.4}
    ),
    "an enclave's stage behind another enclave is moved": Edit(cuts=(5, 10, 44), untrusted=(2,)),
    "the owner's policy is stricter": Edit(cuts=(27, 44), allowed=0.1),
    "the owner's policy releases nothing": Edit(cuts=(27, 44), allowed=None),
}  # fmt: skip


#: The rest differ in what the owner's own check finds, which is tested without workers as well.
_ALWAYS = 4


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=() if number < _ALWAYS else pytest.mark.full)
        for number, case in enumerate(EDITS)
    ],
)
def test_a_plan_edited_by_hand_and_sealed_again_is_refused_by_the_enclave(
    case: str, model: Model, trust: dict[str, Path], tmp_path: Path
) -> None:
    edit = EDITS[case]
    rig = make_rig(model, edit.plan(model), tmp_path, trust, edit.owner(model))
    with pytest.raises(TensorNotReleased) as refused:
        rig.session()
    assert refused.value.expected
    assert refused.value.remedy
    # By the enclave's own word or, if its end is noticed first, by the host's.
    with pytest.raises(VaultlineError, match="next stage is untrusted") as caught, unchecked(rig):
        pass
    assert isinstance(caught.value, RefusedByPeerError | WorkerRefusedError)
    assert caught.value.got == "TensorNotReleased"
    assert caught.value.exit_code == 1


def test_the_same_session_opens_where_the_policy_allows_it(
    model: Model, trust: dict[str, Path], tmp_path: Path
) -> None:
    """The refusals above are due to what they are about, not to how the session was made."""
    edit = Edit(cuts=(27, 44))
    rig = make_rig(model, edit.plan(model), tmp_path, trust, edit.owner(model))
    with unchecked(rig) as session:
        assert len(session.releases) == 3


def test_the_frame_itself_goes_to_no_accelerator(
    model: Model, trust: dict[str, Path], tmp_path: Path
) -> None:
    """The owner sends it: there is no enclave before it that could refuse."""
    edit = Edit(cuts=(27,), untrusted=(0,))
    rig = make_rig(model, edit.plan(model), tmp_path, trust, edit.owner(model))
    with pytest.raises(TensorNotReleased, match="stage 0"):
        rig.session()


def test_weights_that_are_secret_go_to_no_accelerator(
    model: Model, trust: dict[str, Path], tmp_path: Path
) -> None:
    plan = Edit(cuts=(27, 44)).plan(model)
    allowed = disclosure(model, LEAKAGE, LIMIT, "27:40", "41:56")
    rig = make_rig(model, plan, tmp_path, trust, allowed)
    with pytest.raises(WeightsNotDisclosed) as caught:
        rig.session()
    assert "40 is not disclosed" in str(caught.value.got)


def test_a_plan_edited_by_hand_is_another_plan(
    model: Model, trust: dict[str, Path], tmp_path: Path
) -> None:
    """Not sealed again: there is no vault for it."""
    edit = Edit(cuts=(27, 44))
    rig = make_rig(model, edit.plan(model), tmp_path, trust, edit.owner(model))
    edited = write_plan(rig.plan).replace(b'"leakage":0.2', b'"leakage":0.1')
    assert edited != write_plan(rig.plan)
    other = Rig(
        plan=read_plan(edited),
        vault=rig.vault,
        keys=rig.keys,
        trust=trust,
        disclosure=rig.disclosure,
    )
    with pytest.raises(VaultOtherPlanError):
        unchecked(other)


def test_a_plan_that_releases_too_much_or_hides_what_it_releases_cannot_be_read(
    model: Model,
) -> None:
    text = write_plan(Edit(cuts=(27, 44)).plan(model))
    fields = json.loads(text)
    for change in (
        {"released": []},
        {"released": [fields["released"][0] | {"leakage": 0.4}]},
        {"released": [fields["released"][0] | {"stage": 2}]},
        {"released": [fields["released"][0] | {"tensor": "scores"}]},
    ):
        with pytest.raises(InputError):
            read_plan(canonical_json(fields | change))


# --- Workers and keys exchanged ------------------------------------------------------------------


def as_accelerator(trust: Mapping[str, Path]) -> dict[str, str]:
    return {"provider": "pinned", "platform_file": str(trust["accelerator"])}


def as_enclave(trust: Mapping[str, Path]) -> dict[str, str]:
    return {"provider": "simulated", "platform_file": str(trust["platform"])}


EXCHANGES = {
    "an accelerator in an enclave's place": ("stage0", as_accelerator, KindRefused),
    "an enclave in an accelerator's place": ("stage1", as_enclave, KindRefused),
    "an accelerator with a key of its own": (
        "stage1",
        lambda trust: as_accelerator({"accelerator": trust["stranger"]}),
        PinnedKeyRefused,
    ),
}


@pytest.mark.parametrize("case", EXCHANGES)
def test_a_worker_in_anothers_place_gets_no_key(
    case: str, model: Model, trust: dict[str, Path], tmp_path: Path
) -> None:
    name, instead, refusal = EXCHANGES[case]
    create_accelerator(tmp_path / "stranger")
    files = {**trust, "stranger": tmp_path / "stranger" / ACCELERATOR_FILE}
    edit = Edit(cuts=(27, 44))
    rig = make_rig(model, edit.plan(model), tmp_path, trust, edit.owner(model))

    def exchange(worker: LaunchWorker) -> LaunchWorker:
        if worker.name != name:
            return worker
        return msgspec.structs.replace(worker, start=Start(**instead(files)))

    with pytest.raises(EvidenceRefused) as caught, unchecked(rig, exchange):
        pass
    assert type(caught.value) is refusal
