"""A Delivery: what a program gets for a message that it publishes."""

from __future__ import annotations

import threading
from typing import Optional

ACCEPTED, REFUSED, UNKNOWN = "accepted", "refused", "unknown"


class Delivery:
    """A message in the outbox, and its outcome when there is one."""

    def __init__(self, number: int) -> None:
        #: The delivery's number: the same after a restart of the program, and never used twice in one state directory.
        self.number = number
        #: `accepted`, `refused` or `unknown`; None as long as there is no outcome.
        self.outcome: Optional[str] = None
        #: Why it was refused or is unknown: a reason of the gateway, `mqtt 0x..`, `unspecified`, or a reason of SignError.
        self.reason = ""
        #: The UUID that it was sent with last.
        self.message_id: Optional[str] = None
        #: How often it was sent.
        self.sent = 0
        #: Whether the gateway may have accepted it more than once, with different message ids.
        self.may_be_repeated = False
        self._done = threading.Event()

    def wait(self, timeout: Optional[float] = None) -> Optional[str]:
        """Waits for the outcome and returns it. None: the time in seconds is up, or the Device was closed before.

        The message stays in the outbox in both cases, and is sent after the next start.
        """
        self._done.wait(timeout)
        return self.outcome

    def __repr__(self) -> str:
        return f"<Delivery {self.number} {self.outcome or 'waiting'}{' ' + self.reason if self.reason else ''}>"

    def _settle(self, outcome: str, reason: str, message_id: Optional[str], sent: int, may_be_repeated: bool) -> None:
        self.reason, self.message_id, self.sent, self.may_be_repeated = reason, message_id, sent, may_be_repeated
        self.outcome = outcome
        self._done.set()

    def _release(self) -> None:
        """Ends the waiting without an outcome."""
        self._done.set()

    def _forked(self) -> None:
        """As _release, in a child process: another thread may have had the lock of the event."""
        self._done = threading.Event()
        self._done.set()
