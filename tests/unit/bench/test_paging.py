from __future__ import annotations

from vaultline.bench.paging import SGX1_PAGE_S, measure_page_s, page_costs


def test_a_page_is_really_encrypted_and_decrypted() -> None:
    page_s = measure_page_s(batches=4)
    # 8 KiB through AES-GCM: not for free, and far below a millisecond on any machine.
    assert 1e-7 < page_s < 1e-3


def test_both_ways_of_pricing_a_page_are_recorded() -> None:
    costs = page_costs()
    assert costs["sgx1"] == SGX1_PAGE_S
    assert costs["crypto"] > 0
