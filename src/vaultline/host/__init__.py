"""The untrusted side: launches, wires, supervises and stops workers. Holds no key, opens nothing.

A process of its own (``python -m vaultline.host``), also when the owner sits on the same machine:
the boundary between owner and host is one between processes.
"""
