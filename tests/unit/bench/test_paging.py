from __future__ import annotations

from vaultline.bench.paging import measure_page, page_costs
from vaultline.core.paged import SGX1_PAGE_S


def test_a_page_is_really_encrypted_and_decrypted() -> None:
    cost = measure_page(rounds=1)
    # 8 KiB through AES-GCM: not for free, and far below a millisecond on any machine.
    assert 1e-7 < cost.cipher_s < 1e-3
    assert 0 < cost.bookkeeping_s < 1e-3


def test_both_ways_of_pricing_a_page_are_recorded() -> None:
    costs = page_costs()
    assert costs["sgx1"] == SGX1_PAGE_S == 11e-6
    assert costs["crypto"] > 0
