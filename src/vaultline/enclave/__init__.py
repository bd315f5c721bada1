"""The trusted computing base: what runs inside an enclave and sees plaintext of its stage."""
