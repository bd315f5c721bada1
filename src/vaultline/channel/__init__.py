"""Bytes in, events out: sealed records between two places, and sealed chunks at rest.

Sans-I/O: nothing here touches a socket, a file or a clock. Bytes of a peer can raise
``RemoteProtocolError`` and nothing else; misuse by our own code raises ``LocalProtocolError``.
"""
