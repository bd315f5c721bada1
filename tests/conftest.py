"""For all tests."""

from __future__ import annotations

import signal

# A shell ignores Ctrl-C on behalf of what it starts in the background, and so would every process
# that a test starts and then stops this way.
signal.signal(signal.SIGINT, signal.default_int_handler)
