"""What swapping a page of protected memory costs: measured here, and as published for SGX1."""

from __future__ import annotations

import statistics
import time

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vaultline.core.paged import PAGE_BYTES, SGX1_PAGE_S
from vaultline.core.program import PageMode

#: The SGX driver of Linux reclaims so many pages at a time.
RECLAIM_PAGES = 16
_TAG_BYTES = 16


def page_costs() -> dict[PageMode, float]:
    """Seconds per swapped page: only the cipher's work (a lower bound), and that of SGX1."""
    return {"crypto": measure_page_s(), "sgx1": SGX1_PAGE_S}


def measure_page_s(*, batches: int = 64) -> float:
    """Seconds to encrypt one page and decrypt another with AES-GCM, in batches as reclaimed.

    The pages of a batch lie apart from those of the last, as a page cache larger than the
    processor's caches has them.
    """
    cipher = AESGCM(AESGCM.generate_key(256))
    sealed_bytes = PAGE_BYTES + _TAG_BYTES
    plain = memoryview(bytearray(batches * RECLAIM_PAGES * PAGE_BYTES))
    sealed = memoryview(bytearray(batches * RECLAIM_PAGES * sealed_bytes))
    pages = [
        (
            number.to_bytes(12, "big"),
            plain[number * PAGE_BYTES :][:PAGE_BYTES],
            sealed[number * sealed_bytes :][:sealed_bytes],
        )
        for number in range(batches * RECLAIM_PAGES)
    ]
    times_s = []
    for first in range(0, len(pages), RECLAIM_PAGES):
        batch = pages[first : first + RECLAIM_PAGES]
        before_s = time.perf_counter()
        for nonce, page, out in batch:
            cipher.encrypt_into(nonce, page, None, out)
        for nonce, page, out in batch:
            cipher.decrypt_into(nonce, out, None, page)
        times_s.append((time.perf_counter() - before_s) / RECLAIM_PAGES)
    return statistics.median(times_s)
