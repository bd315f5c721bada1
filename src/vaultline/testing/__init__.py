"""Fakes and small servers for tests, ours and other people's; nothing else imports this."""
