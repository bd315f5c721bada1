"""Evidence, appraisal (the relying party's, with dcap-qvl) and grants: bytes in, verdicts out."""
