"""What the owner's own policy and report make of a plan: its claims count for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from vaultline.attest.stage_grant import HopRelease, TensorNotReleased
from vaultline.bench.cutting import cut_plan
from vaultline.core.errors import InputError
from vaultline.core.leakage import write_leakage
from vaultline.core.plan import Plan
from vaultline.core.section import SectionAccess
from vaultline.graph.model import load_model
from vaultline.owner.deploy import stage_settings
from vaultline.owner.disclosure import (
    Disclosure,
    WeightsNotDisclosed,
    check_disclosed,
    load_disclosure,
    untrusted_stages,
)
from vaultline.owner.release import StageSecrets
from vaultline.planner.release import ReportForAnotherModelError
from vaultline.testing.privacy import disclosure, leakage_report, on_accelerators, privacy

MODEL = load_model(Path(__file__).parents[3] / "examples" / "digits" / "digits.onnx")
LEAKAGE = {0: 1.0, 27: 0.2, 34: 0.25, 44: 0.1, 56: 0.1}
SECRETS = StageSecrets(
    access=SectionAccess(
        vault_id=bytes(16),
        model_id=bytes(16),
        plan_digest=bytes(32),
        stage=0,
        stage_key=bytes(32),
        section_digest=bytes(32),
        section_offset=0,
        section_bytes=480,
        program_bytes=400,
    ),
    hop_in_secret=b"i" * 32,
    hop_out_secret=b"o" * 32,
)


def plan(*untrusted: int, cuts: tuple[int, ...] = (27, 44)) -> Plan:
    return on_accelerators(cut_plan(MODEL, cuts), untrusted, leakage=0.0, limit=1.0)


def test_a_plan_of_enclaves_needs_no_policy() -> None:
    Disclosure().check(plan())
    assert untrusted_stages(plan()) == ()
    assert Disclosure().attach(plan(), [SECRETS] * 3) == (SECRETS,) * 3


def test_a_grant_before_an_untrusted_stage_says_what_was_measured() -> None:
    """Not what the plan claims (0), and at the worst of the stage's cuts (after 34 nodes)."""
    owner = disclosure(MODEL, LEAKAGE, 0.3, "27:44")
    owner.check(plan(1))
    before, on_it, after = owner.attach(plan(1), [SECRETS] * 3)
    assert before.release == HopRelease(tensors=("block2a.relu2",), leakage=0.25, limit=0.3)
    assert on_it.release is None
    assert after.release is None


def test_untrusted_stages_in_a_row_count_as_one() -> None:
    """They may tell each other what they see, and no enclave is between them."""
    owner = disclosure(MODEL, {**LEAKAGE, 44: 0.5}, 0.3, "all")
    released = owner.hop_release(plan(1, 2, cuts=(27, 34, 44)), 1)
    assert released is not None
    assert released.leakage == 0.5
    apart = owner.hop_release(plan(1, 3, cuts=(27, 34, 44)), 1)
    assert apart is not None
    assert apart.leakage == 0.25


def test_only_the_program_before_an_untrusted_stage_says_so() -> None:
    settings = [stage_settings(plan(1), stage).next_untrusted for stage in range(3)]
    assert settings == [True, False, False]


#: Case -> (stages that are untrusted, cuts, owner).
REFUSED = {
    "no policy": ((1,), (27, 44), Disclosure(report=leakage_report(MODEL, LEAKAGE))),
    "no input section": ((1,), (27, 44), disclosure(MODEL, LEAKAGE, None, "all")),
    "no report": ((1,), (27, 44), Disclosure(policy=privacy(1.0, "all"))),
    "a limit that is too low": ((1,), (27, 44), disclosure(MODEL, LEAKAGE, 0.24, "all")),
    "a first cut that was not measured": ((1,), (20, 44), disclosure(MODEL, LEAKAGE, 0.3, "all")),
    "a last cut that was not measured": ((1,), (27, 45), disclosure(MODEL, LEAKAGE, 0.3, "all")),
    "the frame itself": ((0,), (27, 44), disclosure(MODEL, LEAKAGE, 0.3, "all")),
    "an output that was not measured": (
        (2,), (27, 44), disclosure(MODEL, {27: 0.1, 44: 0.1}, 0.3, "all")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_tensors_are_not_released_with(case: str) -> None:
    untrusted, cuts, owner = REFUSED[case]
    policy = replace(owner.policy, model=privacy(None, "all").model)
    with pytest.raises(TensorNotReleased, match=f"stage {untrusted[0]}") as caught:
        Disclosure(policy=policy, report=owner.report).check(plan(*untrusted, cuts=cuts))
    assert caught.value.exit_code == 1
    assert caught.value.got
    assert caught.value.expected
    assert caught.value.remedy


def test_tensors_of_another_name_are_not_released() -> None:
    """The report has one cut more of a branching block; a plan's stage shows a tensor besides."""
    owner = disclosure(MODEL, LEAKAGE, 0.3, "all")
    assert owner.report is not None
    cuts = tuple(
        replace(cut, tensors=("another",)) if cut.position == 27 else cut
        for cut in owner.report.cuts
    )
    other = Disclosure(policy=owner.policy, report=replace(owner.report, cuts=cuts))
    with pytest.raises(TensorNotReleased):
        other.check(plan(1))


def test_weights_that_are_not_disclosed_are_refused() -> None:
    for ranges in ((), ("27:43",), ("28:44",), ("27:35", "36:44")):
        with pytest.raises(WeightsNotDisclosed) as caught:
            check_disclosed(plan(1), privacy(1.0, *ranges))
        assert caught.value.exit_code == 1
        assert caught.value.got
        assert caught.value.expected
        assert caught.value.remedy
    check_disclosed(plan(1), privacy(None, "27:44"))


def test_a_report_on_another_model_is_refused() -> None:
    owner = disclosure(MODEL, LEAKAGE, 0.3, "all")
    assert owner.report is not None
    other = Disclosure(policy=owner.policy, report=replace(owner.report, model_digest="00" * 32))
    with pytest.raises(ReportForAnotherModelError):
        other.check(plan(1))


def test_files_are_read_and_absent_ones_allow_nothing(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("version: 1\nmodel: {disclose: [all]}\n")
    (tmp_path / "r.json").write_bytes(write_leakage(leakage_report(MODEL, LEAKAGE)))
    assert load_disclosure(None, None) == Disclosure()
    loaded = load_disclosure(tmp_path / "p.yaml", tmp_path / "r.json")
    assert loaded == Disclosure(policy=privacy(None, "all"), report=leakage_report(MODEL, LEAKAGE))
    with pytest.raises(InputError, match="cannot read the privacy policy"):
        load_disclosure(tmp_path / "none", None)
    with pytest.raises(InputError, match="cannot read the leakage report"):
        load_disclosure(None, tmp_path)
    (tmp_path / "r.json").write_text("{}")
    with pytest.raises(InputError, match="not valid"):
        load_disclosure(None, tmp_path / "r.json")
