"""Fakes and contract suites that tests use; nothing else imports them."""
