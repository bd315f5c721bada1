"""Rewrites that make a model faster in the engine without changing what it computes."""

from __future__ import annotations

from collections.abc import Callable

from vaultline.graph.passes import fold_affine, lrn
from vaultline.graph.structure import Model

#: Every pass by name, in the order in which they run.
PASSES: dict[str, Callable[[Model], Model]] = {
    "fold-affine": fold_affine.apply,
    "lrn-as-convolution": lrn.apply,
}


def rewrite(model: Model, *, skip: frozenset[str] = frozenset()) -> Model:
    """Apply every pass but those named in ``skip``; outputs stay within 1e-4 relative."""
    for name, apply in PASSES.items():
        if name not in skip:
            model = apply(model)
    return model
