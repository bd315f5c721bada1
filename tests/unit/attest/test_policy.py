"""Policies: what can be written down, and what a mistake in one says."""

from __future__ import annotations

import pytest

from vaultline.attest.policy import INTEL_ROOT, Policy
from vaultline.core.errors import InputError
from vaultline.core.yaml import from_yaml

ROOT, CODE, TD = "ab" * 48, "cd" * 32, "ef" * 48


def load(text: str) -> Policy:
    return from_yaml(text, Policy, what="the policy", path="policy.yaml")


def test_a_full_policy_is_read() -> None:
    policy = load(f"""
version: 1
debug: false
accept:
  - kind: sgx
    roots: [intel]
    measurements: ["{CODE}"]
    signers: [{{mrsigner: "{CODE}", product_id: 3, svn_min: 2}}]
    tcb_statuses: [UpToDate, SWHardeningNeeded]
    accepted_advisories: [INTEL-SA-00615]
    refused_platforms: [smt]
  - kind: tdx
    roots: [intel]
    trust_domains: [{{mrtd: "{TD}", rtmr1: "{TD}", rtmr2: "{TD}"}}]
  - kind: simulated
    roots: ["{ROOT.upper()}"]
    measurements: ["{CODE}"]
  - kind: accelerator
    public_keys: ["{CODE.upper()}", "{CODE[::-1]}"]
""")
    assert [entry.kind for entry in policy.accept] == ["sgx", "tdx", "simulated", "accelerator"]
    assert policy.accept[0].root_ids == {INTEL_ROOT}
    assert policy.accept[2].root_ids == {ROOT}
    assert policy.accept[3].pinned_keys == {CODE, CODE[::-1]}
    assert policy.accept[1].tcb_statuses == ("UpToDate",)
    assert policy.accept[1].accepted_advisories == ()


def test_every_option_of_hardware_is_read() -> None:
    policy = load(f"""
version: 1
accept:
  - kind: sgx
    roots: [intel]
    measurements: ["{CODE}"]
    tcb_grace: [{{status: OutOfDate, days: 90}}, {{status: Unlisted, days: 30}}]
    refused_advisories: [INTEL-SA-00001]
    collateral_days_max: 30
    tcb_evaluation_min: 17
    require_report_data: true
    unsafe_any_advisory: true
  - kind: snp
    roots: [amd-milan, amd-genoa, amd-turin]
    guests: [{{launch_digest: "{TD}", host_data: "{CODE}", id_key_digest: "{TD}", svn_min: 2}}]
    products: [Milan, Turin]
    tcb_min: {{boot_loader: 4, tee: 0, snp: 22, microcode: 213, fmc: 1}}
    vmpl_max: 1
    refused_platforms: [migration, multi-socket, shared-key, smt]
    unsafe_allow_debug: true
    unsafe_skip_revocation: true
  - kind: nvidia
    roots: [nvidia]
    gpus: [{{driver: "1", vbios: "2", measurements: {{m01: "{TD}"}}}}]
""")
    assert policy.unsafe == ("unsafe_allow_debug", "unsafe_any_advisory", "unsafe_skip_revocation")
    assert len(policy.accept[1].root_ids) == 3
    assert policy.accept[0].unsafe == ("unsafe_any_advisory",)


HEAD = "version: 1\naccept:\n"
SNP = f'{HEAD}  - kind: snp\n    roots: [amd-milan]\n    guests: [{{launch_digest: "{TD}"}}]\n'
ENTRY = f'{HEAD}  - kind: simulated\n    roots: ["{ROOT}"]\n    measurements: ["{CODE}"]\n'
PINNED = f'{HEAD}  - kind: accelerator\n    public_keys: ["{CODE}"]\n'
MISTAKES = {
    "an empty file": ("", "policy.yaml"),
    "nothing accepted": ("version: 1\naccept: []\n", "policy.yaml:1: the policy: the policy acc"),
    "another version": (ENTRY.replace("version: 1", "version: 2"), "another version"),
    "debug turned on": (ENTRY + "debug: true\n", "always refused"),
    "an unknown field": (ENTRY + "    mesurement: 1\n", "policy.yaml:6:"),
    "an unknown kind": (ENTRY.replace("simulated", "trusted"), "policy.yaml:3:"),
    "no root": (ENTRY.replace(f'"{ROOT}"', ""), "accepts nothing"),
    "a root that is not a digest": (ENTRY.replace(ROOT, "abc"), "key id"),
    "a simulated enclave under Intel's root": (ENTRY.replace(ROOT, "intel"), "Intel's root"),
    "the same, by its id": (ENTRY.replace(ROOT, INTEL_ROOT), "Intel's root"),
    "no measurement": (ENTRY.replace(f'"{CODE}"', ""), "needs other reference values"),
    "a measurement that is too short": (ENTRY.replace(CODE, "cd" * 31), "64 hex digits"),
    "a measurement with spaces": (ENTRY.replace(CODE, "cd " * 32), "64 hex digits"),
    "a measurement for a trust domain": (
        ENTRY.replace("simulated", "tdx"),
        "needs other reference values",
    ),
    "a signer for a simulated enclave": (
        ENTRY + f'    signers: [{{mrsigner: "{CODE}", product_id: 0, svn_min: 0}}]\n',
        "needs other reference values",
    ),
    "a signer with a negative version": (
        ENTRY.replace("simulated", "sgx")
        + f'    signers: [{{mrsigner: "{CODE}", product_id: 0, svn_min: -1}}]\n',
        "policy.yaml:6:",
    ),
    "a trust domain without its kernel": (
        f'{HEAD}  - kind: tdx\n    roots: [intel]\n    trust_domains: [{{mrtd: "{TD}"}}]\n',
        "missing field `rtmr1`",
    ),
    "a TCB status that does not exist": (ENTRY + "    tcb_statuses: [Fine]\n", "policy.yaml:6:"),
    "a revoked platform accepted": (ENTRY + "    tcb_statuses: [Revoked]\n", "policy.yaml:6:"),
    "an accelerator without keys": (PINNED.replace(f'"{CODE}"', ""), "needs other reference"),
    "an accelerator with a key that is too short": (PINNED.replace(CODE, "cd"), "public key"),
    "an accelerator with a root": (PINNED + f'    roots: ["{ROOT}"]\n', "has no root"),
    "an accelerator with a measurement": (
        PINNED + f'    measurements: ["{CODE}"]\n',
        "needs other reference values",
    ),
    "an accelerator with an option that means nothing": (
        PINNED + "    refused_platforms: [smt]\n",
        "means nothing",
    ),
    "an accelerator with a status": (PINNED + "    tcb_statuses: [OutOfDate]\n", "means nothing"),
    "a status of Intel's for AMD": (SNP + "    tcb_statuses: [OutOfDate]\n", "means nothing"),
    "an enclave with an accelerator's key": (
        ENTRY + f'    public_keys: ["{CODE}"]\n',
        "needs other reference values",
    ),
    "a guest with a digest that is too short": (SNP.replace(TD, "ef"), "launch_digest"),
    "a guest with a negative version": (
        SNP.replace(f'"{TD}"', f'"{TD}", svn_min: -1'),
        "32-bit number",
    ),
    "a privilege level that does not exist": (SNP + "    vmpl_max: 4\n", "0 to 3"),
    "a firmware version that does not exist": (SNP + "    tcb_min: {snp: 256}\n", "up to 255"),
    "an option of Intel's for AMD": (SNP + "    tcb_evaluation_min: 1\n", "means nothing"),
    "an option of AMD's for a simulated enclave": (ENTRY + "    vmpl_max: 1\n", "means nothing"),
    "an unsafe option that is none of the kind's": (
        ENTRY + "    unsafe_allow_debug: true\n",
        "means nothing",
    ),
    "an unsafe option that does not exist": (ENTRY + "    unsafe_all: true\n", "unsafe_all"),
    "an advisory that is accepted and refused": (
        ENTRY + "    accepted_advisories: [A]\n    refused_advisories: [a]\n",
        "both accepted and refused",
    ),
    "grace without days": (ENTRY + "    tcb_grace: [{status: OutOfDate, days: 0}]\n", "days"),
    "grace for a revoked platform": (
        ENTRY + "    tcb_grace: [{status: Revoked, days: 1}]\n",
        "policy.yaml:6:",
    ),
    "collateral of no age": (ENTRY + "    collateral_days_max: 0\n", "at least 1"),
    "a GPU without measurements": (
        f"{HEAD}  - kind: nvidia\n    roots: [nvidia]\n"
        '    gpus: [{driver: "1", vbios: "2", measurements: {}}]\n',
        "nothing about its firmware",
    ),
    "a GPU's measurement without an index": (
        f"{HEAD}  - kind: nvidia\n    roots: [nvidia]\n"
        f'    gpus: [{{driver: "1", vbios: "2", measurements: {{x: "{TD}"}}}}]\n',
        "no index",
    ),
    "a GPU's measurement of an index that does not exist": (
        f"{HEAD}  - kind: nvidia\n    roots: [nvidia]\n"
        f'    gpus: [{{driver: "1", vbios: "2", measurements: {{m65: "{TD}"}}}}]\n',
        "no index",
    ),
    "a simulated enclave under another vendor's root": (
        ENTRY.replace(f'"{ROOT}"', "nvidia"),
        "another vendor's",
    ),
    "no TCB status": (ENTRY + "    tcb_statuses: []\n", "accepts nothing"),
}


@pytest.mark.parametrize("text, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_policy_is_refused_with(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        load(text)
    assert words in caught.value.diagnostics()
    assert caught.value.message.startswith("policy.yaml")
