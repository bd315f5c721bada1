"""Evidence, appraisal and grants: bytes in, verdicts out; no I/O, no clock.

``challenge``, ``evidence``, ``grant`` and ``sgx_quote`` are what an enclave needs and belong to the
trusted computing base. ``policy`` and ``appraise`` are the relying party's and need dcap-qvl, so
nothing is imported here.
"""
