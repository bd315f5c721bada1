"""Search over cuts and devices, baselines, and the explanation of a plan."""
