"""Vaultline runs a deep neural network across a line of attested enclaves.

See ARCHITECTURE.md for the four places (owner, enclave, accelerator, host) and the layers.
"""

import os

__version__ = "0.1.0"

# Before anything imports the engine: it would write a device id into the home folder and report
# its use to its makers, from an enclave as well. Whoever wants that can set the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
