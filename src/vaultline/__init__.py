"""Vaultline runs a deep neural network across a line of attested enclaves.

See ARCHITECTURE.md for the four places (owner, enclave, accelerator, host) and the layers.
"""

__version__ = "0.1.0"
