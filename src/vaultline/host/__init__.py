"""The untrusted host: launches, places, wires and restarts; holds no key and opens nothing."""
