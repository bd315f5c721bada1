"""The trusted computing base: one worker process per device.

Takes a challenge, gives evidence, opens a grant, loads its stage from the vault, and then opens,
computes and seals frames. Started as ``python -m vaultline.enclave``, natively or under Gramine.
"""
