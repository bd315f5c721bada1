"""Serving many models on many servers: the owner's gateway, its clients, and what it measures."""
