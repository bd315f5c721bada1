"""The trusted computing base: worker loop, executor, memory ledger, evidence, hardening."""
