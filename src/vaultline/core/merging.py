"""Profiles of one model on several classes of devices as one; classes that nobody has measured."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from vaultline.core.errors import InputError
from vaultline.core.profile import ClassProfile, ModelProfile


def merge_profiles(base: ModelProfile, others: Sequence[ModelProfile]) -> ModelProfile:
    """The base profile with what was measured on other classes of devices.

    Measurements replace estimates of the same class. Estimates of the others are relative to their
    own hosts and stay behind.

    Raises:
        InputError: another model or other cuts, or a class that is measured twice.
    """
    classes = list(base.classes)
    taken = {base.recorded_on.device_class, *(each.name for each in base.classes)}
    for other in others:
        _check_same(base, other)
        for each in (_as_class(other), *other.classes):
            if each.name in taken:
                raise InputError(
                    f"the class {each.name} was measured twice",
                    got=f"on {each.recorded_on.host} ({each.recorded_on.cpu}) and before",
                    expected="each class once",
                    remedy="leave one out, or measure again with another --class",
                )
            taken.add(each.name)
            classes.append(each)
    estimated = {name: scale for name, scale in base.class_scale.items() if name not in taken}
    notes = {name: note for name, note in base.class_notes.items() if name in estimated}
    return replace(base, classes=tuple(classes), class_scale=estimated, class_notes=notes)


def _check_same(base: ModelProfile, other: ModelProfile) -> None:
    name = f"the profile of class {other.recorded_on.device_class} from {other.recorded_on.host}"
    if other.model_digest != base.model_digest:
        raise InputError(
            f"{name} is of another model",
            got=f"{other.model_name}, digest {other.model_digest[:16]}",
            expected=f"{base.model_name}, digest {base.model_digest[:16]}",
            remedy="merge profiles of one model file",
        )
    if other.positions != base.positions:
        raise InputError(
            f"{name} has other cuts",
            got=f"{len(other.positions)} positions",
            expected=f"the {len(base.positions)} positions of the first profile",
            remedy="profile the model with the same version of vaultline everywhere",
        )


def _as_class(profile: ModelProfile) -> ClassProfile:
    return ClassProfile(
        name=profile.recorded_on.device_class,
        recorded_on=profile.recorded_on,
        isa=profile.isa,
        compute_s=tuple(block.compute_s for block in profile.blocks),
        rates=profile.rates,
    )


def estimate_class(profile: ModelProfile, name: str, factor: float, note: str = "") -> ModelProfile:
    """The profile with a class that nobody has measured, marked as estimated.

    Args:
        factor: how many times longer work takes on it than on the profile's own host: 0.2 is five
            times as fast. Replaces an earlier estimate.
        note: where the factor comes from.

    Raises:
        InputError: the class was measured, has no name, or an impossible factor.
    """
    if name == profile.recorded_on.device_class or profile.class_named(name) is not None:
        raise InputError(
            f"the class {name} was measured: an estimate would be worse",
            got=f"a factor of {factor:g}",
            expected="a class that the profile doesn't have",
            remedy="choose another name, or start from a profile without that class",
        )
    notes = {known: text for known, text in profile.class_notes.items() if known != name}
    if note:
        notes[name] = note
    scale = {**profile.class_scale, name: factor}
    return replace(profile, class_scale=scale, class_notes=notes)
