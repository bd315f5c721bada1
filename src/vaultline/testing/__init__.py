"""Fakes and contract suites for other code's tests; never imported by the rest."""
