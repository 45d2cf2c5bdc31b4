"""Decides what is sent when, and what the gateway's answers mean: device/README.md, "Sending again" and "Outcomes".

It does no I/O but for the Store, and is used by one thread.
"""

from __future__ import annotations

import uuid
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from ._delivery import ACCEPTED, REFUSED, UNKNOWN
from ._store import Row, Store
from .core import MAX_INTEGER, Notice, sign
from .credentials import Credential
from .errors import BouncerError, SignError, SigningFailed

WINDOW = 16
_NOTICE_WAIT = 2.0  # seconds from a PUBACK to its notice
_SILENT_WAIT = 2.0  # seconds before what was refused without a notice is tried again
_ATTEMPTS = 3  # refusals by the clock, or without a notice
_AGE_MARGIN = 30  # seconds below the tolerance
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_PACKET_TOO_LARGE = "mqtt 0x95"

_READY, _SENT, _REFUSED, _WAITING = range(4)


class Clock:
    """The system's time plus an offset. The offset is kept by the Store."""

    def __init__(self, system: Callable[[], float], store: Store) -> None:
        self._system = system
        self.offset = store.offset

    def now(self) -> int:
        return min(max(self.system() + self.offset, 0), MAX_INTEGER)

    def system(self) -> int:
        return int(self._system())


class Settled(NamedTuple):
    """A message that has left the outbox, and how."""

    row: Row
    outcome: str
    reason: str


class _Entry:
    """A message of the window: those with the lowest numbers."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.state = _READY
        self.due = 0.0  # of _REFUSED and _WAITING
        self.sign_again = False
        # A copy of these bytes was sent, and whether the gateway accepted it is not known.
        self.unknown = row.message is not None
        # The reason of a notice that came before the PUBACK, and the offset of the clock that follows from it.
        self.notice: Optional[Tuple[str, int]] = None
        self.paced = 0  # the sender's number of pauses when it was sent


class Link(NamedTuple):
    """A connection, as the Sender sees it."""

    send: Callable[[str, bytes], int]  # topic and message; returns the packet id, or raises when the connection is lost
    window: int  # how many messages the broker takes at a time
    notices: bool  # whether notices can come
    max_packet: Optional[int]


class Sender:
    def __init__(
        self,
        store: Store,
        credential: Credential,
        device_id: str,
        topics: Tuple[str, Optional[str]],
        clock: Clock,
        *,
        tolerance: int = 300,
        max_bytes: int = 65536,
        repeat: bool = True,
    ) -> None:
        """topics: of data, and of answers or None. repeat: what may have been accepted is sent again with a new id."""
        self._store = store
        self._credential = credential
        self._device_id = device_id
        self._topics = topics
        self._clock = clock
        self._tolerance = tolerance
        self._max_bytes = max_bytes
        self._repeat = repeat
        self._link: Optional[Link] = None
        self._entries: List[_Entry] = []  # in the order of their numbers
        self._by_mid: Dict[int, _Entry] = {}
        self._last = 0  # the highest number that was in the window
        self._more = True  # the store may have more
        self._settled: List[Settled] = []  # not on the disk yet
        self._offset: Optional[int] = None  # likewise
        self._done: List[Settled] = []
        # Pauses, which the gateway asks for. After one the window begins at one message, and grows with each that is accepted.
        self._pause_until = 0.0
        self._pause = _FIRST_PAUSE
        self._pauses = 0
        self._allowed = WINDOW
        self._sign_after = 0.0
        self._sign_pause = _FIRST_PAUSE

    # What happens

    def added(self) -> None:
        """The store has a new message. May be called by any thread."""
        self._more = True

    def connected(self, link: Link) -> None:
        self._link = link

    def disconnected(self) -> None:
        self._link = None
        self._by_mid.clear()
        for entry in self._entries:
            if entry.state == _SENT:
                entry.state, entry.unknown, entry.notice = _READY, True, None

    def acknowledged(self, mid: int, code: int, now: float) -> None:
        """A PUBACK came."""
        entry = self._by_mid.pop(mid, None)
        if entry is None:
            return
        if code in (0x00, 0x10):
            self._pace_is_good(entry)
            self._settle(entry, ACCEPTED, "")
        elif code < 0x80:
            raise BouncerError("mqtt", f"a PUBACK with the code 0x{code:02x}, which MQTT does not have")
        elif code != 0x87:
            self._settle(entry, REFUSED, f"mqtt 0x{code:02x}")
        elif entry.notice is not None:
            self._refused(entry, *entry.notice, now)
        elif self._link is not None and self._link.notices:
            entry.state, entry.due = _REFUSED, now + _NOTICE_WAIT
        else:
            self._refused_silently(entry, now)

    def notice(self, notice: Notice, now: float) -> None:
        """A notice came, before or after the PUBACK."""
        if notice.message_id is None:
            return
        for entry in self._entries:
            if entry.row.message_id == notice.message_id.lower():
                offset = notice.server_time - self._clock.system()
                if entry.state == _SENT:
                    entry.notice = notice.reason, offset
                elif entry.state == _REFUSED:
                    self._refused(entry, notice.reason, offset, now)
                # Otherwise it is of an earlier copy, or came too late.
                return

    def _refused(self, entry: _Entry, reason: str, offset: int, now: float) -> None:
        entry.state, entry.notice = _READY, None
        row = entry.row
        if reason in ("rate_limited", "overloaded", "internal"):
            if now >= self._pause_until:  # otherwise it was sent before the pause began
                self._pause_until = now + self._pause
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._pauses += 1
            self._allowed = 1
            return
        self._pace_is_good(entry)
        if reason in ("stale", "future"):
            self._offset = self._clock.offset = offset
            entry.row = row = row._replace(clock_refusals=row.clock_refusals + 1)
            if row.clock_refusals >= _ATTEMPTS:
                self._settle(entry, REFUSED, reason)
            elif row.copies > 1 and not self._repeat:
                self._settle(entry, UNKNOWN, reason)
            else:
                entry.sign_again, entry.unknown = True, row.copies > 1
        elif reason == "replay" and row.copies > 1:
            self._settle(entry, ACCEPTED, "")
        else:
            self._settle(entry, REFUSED, reason)

    def _refused_silently(self, entry: _Entry, now: float) -> None:
        row = entry.row
        # Of many messages that are refused at the same time, one has a notice. If the gateway has asked for a pause since this
        # message was sent, that is the reason for this one too, and it does not count.
        if entry.paced == self._pauses:
            entry.row = row = row._replace(silent_refusals=row.silent_refusals + 1)
        if row.silent_refusals >= _ATTEMPTS:
            self._settle(entry, REFUSED, "unspecified")
            return
        entry.state, entry.due = _WAITING, now + _SILENT_WAIT
        entry.sign_again = row.copies == 1

    def _pace_is_good(self, entry: _Entry) -> None:
        if entry.paced != self._pauses:
            return  # it was sent before the gateway asked for a pause
        self._pause = _FIRST_PAUSE
        self._allowed = min(self._allowed + 1, WINDOW)

    def _settle(self, entry: _Entry, outcome: str, reason: str) -> None:
        self._entries.remove(entry)
        self._settled.append(Settled(entry.row, outcome, reason))

    # What is to be done

    def step(self, now: float) -> Optional[float]:
        """Sends what can be sent. Returns the time of the next step, if any.

        Raises StateError, SigningFailed, or what Link.send raises; the next step goes on where this one ended.
        """
        for entry in list(self._entries):
            if entry.state == _REFUSED and now >= entry.due:
                self._refused_silently(entry, now)
            elif entry.state == _WAITING and now >= entry.due:
                entry.state = _READY
        failure: Optional[SigningFailed] = None
        chosen: List[Tuple[_Entry, Row]] = []
        if self._link is not None and now >= self._pause_until and now >= self._sign_after:
            try:
                self._choose(chosen)
            except SigningFailed as error:
                failure = error
                self._sign_after = now + self._sign_pause
                self._sign_pause = min(2 * self._sign_pause, _LONGEST_PAUSE)
            else:
                if chosen:
                    self._sign_pause = _FIRST_PAUSE
        self._commit(chosen)
        if self._link is not None:
            self._send(chosen, self._link)
        if failure is not None:
            raise failure
        return self._next(now)

    def take_done(self) -> List[Settled]:
        """Returns the messages that have left the outbox since the last call, on the disk too."""
        done, self._done = self._done, []
        return done

    def _choose(self, chosen: List[Tuple[_Entry, Row]]) -> None:
        """Adds the messages to send, each with its row as it is then to be on the disk."""
        assert self._link is not None
        if self._more and len(self._entries) < WINDOW:
            self._more = False
            wanted = WINDOW - len(self._entries)
            rows = self._store.rows_after(self._last, wanted)
            self._entries.extend(map(_Entry, rows))
            if rows:
                self._last = rows[-1].number
            if len(rows) == wanted:
                self._more = True
        room = min(self._allowed, self._link.window) - sum(entry.state in (_SENT, _REFUSED) for entry in self._entries)
        ready = [entry for entry in self._entries if entry.state == _READY]
        # First what was sent, and is sent again as it is.
        ready.sort(key=lambda entry: (entry.row.message is None or entry.sign_again, entry.row.number))
        for entry in ready:
            if len(chosen) >= room:
                return
            row = self._prepare(entry)
            if row is not None:
                chosen.append((entry, row))

    def _prepare(self, entry: _Entry) -> Optional[Row]:
        """Returns the row as it is sent, signed if need be; None if it leaves the outbox."""
        row = entry.row
        topic = self._topics[row.kind]
        if topic is None:
            self._settle(entry, REFUSED, "no_topic")
            return None
        now = self._clock.now()
        too_old = row.message is not None and now - row.timestamp > self._tolerance - _AGE_MARGIN
        if row.message is None or entry.sign_again or too_old:
            if row.message is not None and entry.unknown:
                if not self._repeat:
                    self._settle(entry, UNKNOWN, "too_old")
                    return None
                row = row._replace(may_be_repeated=True)
            message_id = str(uuid.uuid4())
            try:
                message = sign(
                    self._credential, self._device_id, now, message_id, row.payload, max_bytes=self._max_bytes
                )
            except SignError as error:
                self._settle(entry, REFUSED, error.reason)
                return None
            row = row._replace(message=message, message_id=message_id, timestamp=now, copies=0)
        assert self._link is not None and row.message is not None
        # The fixed header has 5 bytes at most, and the length of the topic, the packet id and the properties' length 5.
        limit = self._link.max_packet
        if limit is not None and len(row.message) + len(topic.encode()) + 10 > limit:
            self._settle(entry, REFUSED, _PACKET_TOO_LARGE)
            return None
        return row._replace(sent=row.sent + 1, copies=row.copies + 1)

    def _commit(self, chosen: List[Tuple[_Entry, Row]]) -> None:
        """Writes what will be sent and what has left, and then takes it over."""
        if not chosen and not self._settled and self._offset is None:
            return
        self._store.change([row for _, row in chosen], [settled.row for settled in self._settled], self._offset)
        if self._settled:
            self._done += self._settled
            self._more = True
        self._settled, self._offset = [], None
        for entry, row in chosen:
            entry.unknown = entry.unknown and row.copies > 1
            entry.row, entry.sign_again = row, False
            # It counts as sent from here on: after a failure in between it cannot be known.
            entry.state, entry.paced = _SENT, self._pauses

    def _send(self, chosen: List[Tuple[_Entry, Row]], link: Link) -> None:
        for entry, row in chosen:
            topic = self._topics[row.kind]
            assert topic is not None and row.message is not None
            self._by_mid[link.send(topic, row.message)] = entry

    def _next(self, now: float) -> Optional[float]:
        times = [entry.due for entry in self._entries if entry.state in (_REFUSED, _WAITING)]
        for time_of in (self._pause_until, self._sign_after):
            if time_of > now:
                times.append(time_of)
        return min(times) if times else None

