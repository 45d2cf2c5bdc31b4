"""The memory of commands: no command is executed twice, whatever the clock says."""

from __future__ import annotations

import re
from typing import Dict, Iterable, NamedTuple, Optional, Tuple

_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")

NEW, REPEATED, EXPIRED = "new", "repeated", "expired"


class Decision(NamedTuple):
    """What CommandMemory.decide says, and how the memory changes if it is applied."""

    result: str  # "new", "repeated" or "expired"
    id: bytes
    expires: int
    leaves: Optional[bytes]  # the id that leaves the table; it may be the new one
    floor: int  # afterwards


class CommandMemory:
    """A table of a fixed number of commands, and a floor.

    It is kept over restarts by what uses it: `entries` and `floor` are its content. It is not safe for concurrent use.
    """

    def __init__(self, capacity: int = 256, entries: Iterable[Tuple[bytes, int]] = (), floor: int = 0) -> None:
        """entries: ids of 16 bytes with their expiry, the oldest first. Those above the capacity leave, lowest expiry first."""
        if capacity < 1:
            raise ValueError("the capacity must be 1 at least")
        self.capacity = capacity
        self.floor = floor
        self._expiry: Dict[bytes, int] = dict(entries)
        while len(self._expiry) > capacity:
            lowest = min(self._expiry, key=self._expiry.__getitem__)
            self.floor = max(self.floor, self._expiry.pop(lowest))

    @property
    def entries(self) -> Tuple[Tuple[bytes, int], ...]:
        """The ids in the table with their expiry, the oldest first."""
        return tuple(self._expiry.items())

    def remember(self, command_id: str, expires: int) -> str:
        """Takes a command that was verified, and returns `new`, `repeated` or `expired`."""
        decision = self.decide(command_id, expires)
        self.apply(decision)
        return decision.result

    def decide(self, command_id: str, expires: int) -> Decision:
        """Returns what remember would, and changes nothing: the change can be written to the disk before it is applied."""
        key = id_bytes(command_id)
        if key in self._expiry:
            return Decision(REPEATED, key, expires, None, self.floor)
        if expires <= self.floor:
            return Decision(EXPIRED, key, expires, None, self.floor)
        if len(self._expiry) < self.capacity:
            return Decision(NEW, key, expires, None, self.floor)
        lowest = min(self._expiry, key=self._expiry.__getitem__)
        lowest_expiry = self._expiry[lowest]
        if expires < lowest_expiry:
            lowest, lowest_expiry = key, expires
        return Decision(NEW, key, expires, lowest, max(self.floor, lowest_expiry))

    def apply(self, decision: Decision) -> None:
        """Changes the memory as decide has said. No other change may come between the two."""
        if decision.result != NEW:
            return
        self._expiry[decision.id] = decision.expires
        if decision.leaves is not None:
            del self._expiry[decision.leaves]
        self.floor = decision.floor


def id_bytes(uuid: str) -> bytes:
    """Returns the 16 bytes of a UUID of 36 characters."""
    if not _UUID.fullmatch(uuid):
        raise ValueError("not a UUID of 36 characters")
    return bytes.fromhex(uuid.replace("-", ""))


def id_text(key: bytes) -> str:
    """Returns the UUID of 16 bytes, in lower case."""
    digits = key.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
