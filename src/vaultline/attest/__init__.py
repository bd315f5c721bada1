"""Evidence in, verdict out: appraisal of quotes against the owner's policy, without I/O."""
