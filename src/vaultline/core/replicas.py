"""Who exchanges frames with whom when stages have replicas: frame n runs on replica n % r."""

from __future__ import annotations

from math import gcd


def neighbours(index: int, own: int, others: int) -> range:
    """Replicas of the stage before or after that share frames with replica ``index`` of ``own``.

    Frame n is replica n % own's here and n % others' there. By the Chinese remainder theorem
    such a frame exists for exactly the pairs that are equal modulo gcd(own, others).
    """
    step = gcd(own, others)
    return range(index % step, others, step)
