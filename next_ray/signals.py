"""What a run and its supervisor agree on about being stopped: which signals ask for it, and the exit code that asks for more."""

from __future__ import annotations

import signal

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that ask for a stop."""
ECHO_S = 0.5
"""The same signal again within so short a time is the same request: who stops a job may signal its processes one by one and as a group."""
RUN_ME_AGAIN = 75
"""Exit code of a run that committed and stopped because its surroundings go away (EX_TEMPFAIL of sysexits.h)."""
