"""Verified claims against a policy: every check, its verdict and, where it failed, why and the fix.

All checks of an entry are made, so that whoever reads the result sees everything that is wrong at
once. Evidence is accepted if one entry has nothing against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from vaultline.attest.claims import Claims
from vaultline.attest.policy import Accepted, Policy
from vaultline.attest.policy_parts import Gpu, SnpGuest, TrustDomain
from vaultline.attest.refusals import (
    AdvisoryRefused,
    DebugRefused,
    EvidenceRefused,
    FreshnessRefused,
    KindRefused,
    MeasurementRefused,
    MigrationRefused,
    PlatformRefused,
    PrivilegeRefused,
    RevocationUnknown,
    RootRefused,
    SimulatedNotAllowed,
    SvnRefused,
    TcbRefused,
)
from vaultline.attest.snp import tcb_parts

DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of an entry: what was looked at, and the refusal if it failed.

    ``waived``: the unsafe option without which it would have.
    """

    name: str
    refusal: EvidenceRefused | None = None
    waived: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the entry that fits best says of some claims.

    Attributes:
        entry: its index in the policy.
        checks: in the order of `CHECKS`.
        unsafe: the entry's unsafe options.
    """

    entry: int
    checks: tuple[Check, ...]
    unsafe: tuple[str, ...]

    @property
    def refusals(self) -> tuple[EvidenceRefused, ...]:
        """Those of the failed checks; empty where the entry accepts."""
        return tuple(check.refusal for check in self.checks if check.refusal)


def judge(policy: Policy, kind: str, claims: Claims, now_s: int) -> Judgement:
    """Compare claims with the policy's entries of a kind; the first that accepts, or the closest.

    Raises:
        KindRefused: there is no entry of this kind.
    """
    entries = entries_of(policy, kind)
    judged = [_judge_entry(index, entry, claims, now_s) for index, entry in entries]
    return min(judged, key=_objections)


def entries_of(policy: Policy, kind: str) -> list[tuple[int, Accepted]]:
    """The entries of a kind, with their indices.

    Raises:
        KindRefused: none.
    """
    entries = [(i, entry) for i, entry in enumerate(policy.accept) if entry.kind == kind]
    if not entries:
        raise KindRefused(
            f"the policy accepts nothing of kind `{kind}`",
            got=kind,
            expected=", ".join(sorted({entry.kind for entry in policy.accept})),
        )
    return entries


def _objections(judged: Judgement) -> tuple[int, int]:
    """Fewer are closer; of as many, the one whose first comes later."""
    failed = [place for place, check in enumerate(judged.checks) if check.refusal]
    return len(failed), -failed[0] if failed else 0


def _judge_entry(index: int, entry: Accepted, claims: Claims, now_s: int) -> Judgement:
    checks = tuple(_check(name, entry, claims, now_s) for name in CHECKS)
    return Judgement(entry=index, checks=checks, unsafe=entry.unsafe)


def _check(name: str, entry: Accepted, claims: Claims, now_s: int) -> Check:
    def refusal(judge: Accepted) -> EvidenceRefused | None:
        return next(CHECKS[name](judge, claims, now_s), None)

    found, option = refusal(entry), _WAIVERS.get(name, "")
    on = found is None and option in entry.unsafe
    return Check(
        name=name,
        refusal=found,
        waived=option if on and refusal(replace(entry, **{option: False})) else "",
    )


_Refusals = Iterator[EvidenceRefused]


def _check_root(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    if claims.root not in entry.root_ids:
        yield RootRefused(
            "the certificates lead to a root that the policy does not name",
            got=claims.root,
            expected=", ".join(sorted(entry.root_ids)),
        )


def _check_platform(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    if claims.development and entry.kind != "simulated":
        yield SimulatedNotAllowed(
            f"a simulated platform claims to be of kind `{entry.kind}`",
            remedy="list development roots under `kind: simulated` only",
        )
    if entry.kind == "simulated" and not claims.development:
        yield KindRefused(
            "evidence of kind `simulated` comes from a platform that is not a simulated one"
        )
    if entry.products and claims.product not in entry.products:
        yield PlatformRefused(
            "the platform is of another product family",
            got=claims.product,
            expected=", ".join(entry.products),
        )


def _check_debug(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    if claims.debug and not entry.unsafe_allow_debug:
        yield DebugRefused("the enclave is debuggable: its host can read its memory")


def _check_migration(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    """Trust domains that may be moved have been refused before; see `intel`."""
    if claims.flags.get("migration") == "True" and not entry.unsafe_allow_migration:
        yield MigrationRefused("the guest's host may let a migration agent have its memory")


def _check_revocation(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    if not claims.revocation_checked and not entry.unsafe_skip_revocation:
        yield RevocationUnknown("there is no current revocation list by each issuer that has one")


def _check_freshness(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    age_days = (now_s - claims.stated_s) // DAY_S
    if entry.collateral_days_max is not None and age_days > entry.collateral_days_max:
        yield FreshnessRefused(
            "the collateral is older than the policy allows",
            got=f"{age_days} days",
            expected=f"at most {entry.collateral_days_max}",
        )
    if claims.tcb_evaluation < entry.tcb_evaluation_min:
        yield FreshnessRefused(
            "the platform was rated by rules that the policy holds for outdated",
            got=f"evaluation {claims.tcb_evaluation}",
            expected=f"at least {entry.tcb_evaluation_min}",
        )


def _check_tcb(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    if claims.kind == "snp":
        yield from _check_snp_tcb(entry, claims)
    elif claims.tcb_status not in (*entry.tcb_statuses, "Unrated"):
        graces = [g.days for g in entry.tcb_grace if g.status == claims.tcb_status]
        age_days = -(-(now_s - claims.tcb_date_s) // DAY_S)
        if not graces or age_days > max(graces):
            allowed = [*entry.tcb_statuses, *(f"{g.status} {g.days} days" for g in entry.tcb_grace)]
            lasting = "" if claims.tcb_status == "Unlisted" else "in `tcb_statuses`, or "
            yield TcbRefused(
                "the platform is in a state that the policy does not accept",
                got=f"TCB status {claims.tcb_status}, of a level that is {age_days} days old",
                expected=", ".join(allowed),
                remedy=f"update the platform; or accept the status {lasting}for a time in "
                "`tcb_grace`",
            )


#: Prefix of a version -> what has it. The host may go back to committed firmware at any time, under
#: a guest that runs; and firmware updated under a guest cannot undo what the old did at launch.
SNP_TCBS = {
    "": "the platform has",
    "committed_": "the host can go back to",
    "launch_": "the guest was launched by",
}


def _check_snp_tcb(entry: Accepted, claims: Claims) -> _Refusals:
    for prefix, what in SNP_TCBS.items():
        for name in tcb_parts(claims.product):
            found, least = claims.versions[prefix + name], getattr(entry.tcb_min, name)
            if found < least:
                yield TcbRefused(
                    f"{what} {name} firmware older than the policy's least version",
                    got=str(found),
                    expected=f"at least {least}",
                )


def _check_advisories(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    said, never = _upper(claims.advisories), _upper(entry.refused_advisories)
    refused, unknown = said & never, said - _upper(entry.accepted_advisories)
    if refused or (unknown and not entry.unsafe_any_advisory):
        yield AdvisoryRefused(
            "the platform is in a state that the policy does not accept: advisories apply to it",
            got=", ".join(sorted(refused or unknown)),
            expected=", ".join(entry.accepted_advisories) or "none",
        )


def _upper(texts: tuple[str, ...]) -> set[str]:
    return {text.upper() for text in texts}


def _check_flags(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    for flag in entry.refused_platforms:
        said = claims.flags.get(flag, "Undefined")
        if said != "False":
            yield PlatformRefused(
                "the platform is in a state that the policy does not accept: "
                f"one with {flag}, or silent about it",
                got=f"{flag}: {said}",
                expected=f"{flag}: False",
            )


def _check_privilege(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    level = claims.versions.get("vmpl", 0)
    if level > entry.vmpl_max:
        yield PrivilegeRefused(
            "the report was asked for at a less privileged level than the policy allows",
            got=f"VMPL {level}",
            expected=f"at most {entry.vmpl_max}",
        )


def _check_measurement(entry: Accepted, claims: Claims, now_s: int) -> _Refusals:
    if _MATCHERS[entry.kind](entry, claims):
        return
    older = [s.svn_min for s in entry.signers if _is_signers(s.mrsigner, s.product_id, claims)]
    older += [g.svn_min for g in entry.guests if _is_guest(g, claims)]
    if older:
        yield SvnRefused(
            "the enclave is of an older security version than the policy's",
            got=f"version {claims.versions['svn']}",
            expected=f"at least {min(older)}",
        )
        return
    names = [*entry.measurements, *(f"signer {s.mrsigner}" for s in entry.signers)]
    names += [f"MRTD {t.mrtd}, RTMR1 {t.rtmr1}, RTMR2 {t.rtmr2}" for t in entry.trust_domains]
    names += [f"launch digest {g.launch_digest}" for g in entry.guests]
    names += [f"driver {g.driver}, VBIOS {g.vbios}" for g in entry.gpus]
    found = {n: v for n, v in claims.measurements.items() if not n.startswith("m0") or entry.gpus}
    shown = [f"{name} {value}" for name, value in found.items() if value.strip("0")]
    yield MeasurementRefused(
        "the enclave runs other code than the policy names",
        got=", ".join(shown[:8]),
        expected="; ".join(names),
    )


def _matches_sgx(entry: Accepted, claims: Claims) -> bool:
    if claims.measurements["mrenclave"] in {m.lower() for m in entry.measurements}:
        return True
    return any(
        _is_signers(s.mrsigner, s.product_id, claims) and s.svn_min <= claims.versions["svn"]
        for s in entry.signers
    )


def _is_signers(mrsigner: str, product_id: int, claims: Claims) -> bool:
    same = mrsigner.lower() == claims.measurements.get("mrsigner")
    return same and product_id == claims.versions["product_id"]


def _matches_tdx(entry: Accepted, claims: Claims) -> bool:
    return any(_is_domain(domain, claims) for domain in entry.trust_domains)


def _is_domain(domain: TrustDomain, claims: Claims) -> bool:
    expected = {name: getattr(domain, name) for name in domain.__struct_fields__}
    return all(
        value is None or value.lower() == claims.measurements[name]
        for name, value in expected.items()
    )


def _matches_snp(entry: Accepted, claims: Claims) -> bool:
    return any(_is_guest(g, claims) and g.svn_min <= claims.versions["svn"] for g in entry.guests)


def _is_guest(guest: SnpGuest, claims: Claims) -> bool:
    names = ("launch_digest", "host_data", "id_key_digest")
    expected = {name: getattr(guest, name) for name in names}
    return all(
        value is None or value.lower() == claims.measurements[name]
        for name, value in expected.items()
    )


def _matches_nvidia(entry: Accepted, claims: Claims) -> bool:
    return any(_is_gpu(gpu, claims) for gpu in entry.gpus)


def _is_gpu(gpu: Gpu, claims: Claims) -> bool:
    found = claims.measurements
    same = gpu.driver == found["driver"] and gpu.vbios.upper() == found["vbios"].upper()
    return same and all(found.get(name) == m.lower() for name, m in gpu.measurements.items())


_MATCHERS: dict[str, Callable[[Accepted, Claims], bool]] = {
    "simulated": _matches_sgx,
    "sgx": _matches_sgx,
    "tdx": _matches_tdx,
    "snp": _matches_snp,
    "nvidia": _matches_nvidia,
}

#: Name -> check, from who vouches to what runs.
CHECKS: dict[str, Callable[[Accepted, Claims, int], _Refusals]] = {
    "root": _check_root,
    "platform": _check_platform,
    "debug": _check_debug,
    "migration": _check_migration,
    "revocation": _check_revocation,
    "freshness": _check_freshness,
    "tcb": _check_tcb,
    "advisories": _check_advisories,
    "options": _check_flags,
    "privilege": _check_privilege,
    "measurement": _check_measurement,
}
#: Check -> the unsafe option that lets it pass.
_WAIVERS = {
    "debug": "unsafe_allow_debug",
    "migration": "unsafe_allow_migration",
    "revocation": "unsafe_skip_revocation",
    "advisories": "unsafe_any_advisory",
}
