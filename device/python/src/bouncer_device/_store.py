"""The state of a Device on the disk: the outbox, the memory of commands, and the offset of the clock.

An SQLite database in a directory that one Device has at a time. Its journal (WAL, synchronous=FULL) makes each commit survive a
crash and a power failure, and a damaged end of the journal costs the last commits alone.

A database that is damaged or missing parts is an error and is never begun again: the memory of commands would be lost, and a
command could be executed twice. So it is made under another name and renamed when it is complete: a file of this name without
the tables was damaged.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sqlite3
import threading
import weakref
from contextlib import contextmanager
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .core import MAX_INTEGER
from .errors import OutboxFull, StateError
from .memory import NEW, REPEATED, CommandMemory, Decision

_NAME = "state.db"
_APPLICATION = 0x626E6364  # "bncd"
_VERSION = 1

#: So many bytes are counted for each message above those of its payload.
OVERHEAD = 256
#: Answers to commands have room of their own above the limits of the outbox: what was executed can always be answered.
ANSWER_MESSAGES = 256
ANSWER_BYTES = 16 << 20

DATA, ANSWER = 0, 1

_SCHEMA = """
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,   -- of the delivery; never used twice
    kind INTEGER NOT NULL,                      -- 0: data, 1: an answer to a command
    command_id BLOB,                            -- of an answer
    payload BLOB NOT NULL,
    message BLOB,                               -- what was signed, and may have been sent
    message_id TEXT,
    timestamp INTEGER,
    sent INTEGER NOT NULL DEFAULT 0,            -- how often it was sent, over all its message ids
    copies INTEGER NOT NULL DEFAULT 0,          -- how often these very bytes were sent
    may_be_repeated INTEGER NOT NULL DEFAULT 0,
    clock_refusals INTEGER NOT NULL DEFAULT 0,
    silent_refusals INTEGER NOT NULL DEFAULT 0
);
-- One answer of each command waits to be sent.
CREATE UNIQUE INDEX outbox_command ON outbox (command_id) WHERE command_id IS NOT NULL AND message IS NULL;
CREATE TABLE command (
    place INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE,
    expires INTEGER NOT NULL,
    answer BLOB                                 -- the payload; NULL: executing it began and did not end
);
CREATE TABLE value (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
"""


class Row(NamedTuple):
    """A message of the outbox."""

    number: int
    kind: int
    payload: bytes
    message: Optional[bytes]
    message_id: Optional[str]
    timestamp: int
    sent: int
    copies: int
    may_be_repeated: bool
    clock_refusals: int
    silent_refusals: int


_COLUMNS = ", ".join(Row._fields)


class Store:
    """The state directory. All methods may be called from any thread, and raise StateError.

    In a process that was forked off it is closed: the files are of the process that opened them.
    """

    def __init__(self, directory: str, device_id: str, *, max_messages: int, max_bytes: int, commands: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)  # messages have left the outbox
        self._db: Optional[sqlite3.Connection] = None
        self._unreported = self._messages = self._bytes = 0
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._lock_file = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError("state", f"{directory} cannot be used: {error.strerror}") from None
        try:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise StateError("locked", f"another Device uses {directory}") from None
            self._path = os.path.join(directory, _NAME)
            with self._errors():
                if not os.path.lexists(self._path):
                    self._make(device_id)
                self._open(device_id)
                self._read(commands)
        except BaseException:
            self.close()
            raise
        _stores.add(self)

    def forked(self) -> None:
        """Gives everything up in a child process, and touches no file: called after fork, when there is one thread."""
        if self._db is not None:
            # SQLite believes that it has the lock still. Closing the connection, which the end of the child would do, would write the
            # journal's commits into the database and remove the journal that the parent goes on writing.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._db))
            self._db = None
        if self._lock_file >= 0:
            os.close(self._lock_file)  # the parent has the lock still, and it ends with the parent
            self._lock_file = -1
        self._lock = threading.RLock()  # another thread may have had it
        self._room = threading.Condition(self._lock)

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                try:
                    self._db.close()
                except sqlite3.Error:
                    pass  # what was committed is in the journal
                self._db = None
            if self._lock_file >= 0:
                # For a process too that was just forked off and has not come to close it.
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)
                os.close(self._lock_file)
                self._lock_file = -1
            self._room.notify_all()

    # The outbox

    @property
    def messages(self) -> int:
        """How many messages are in the outbox."""
        return self._messages

    def add(self, payload: bytes) -> int:
        """Puts a message into the outbox, and returns its number when it is on the disk. Raises OutboxFull."""
        size = len(payload) + OVERHEAD
        with self._lock:
            if self._messages + self._unreported >= self._max_messages:
                raise OutboxFull(f"{self._max_messages} messages are waiting")
            if self._bytes + size > self._max_bytes:
                raise OutboxFull(f"{self._bytes} bytes are waiting, and {self._max_bytes} are allowed")
            with self._transaction() as db:
                number = self._insert(db, DATA, None, payload)
            self._messages += 1
            self._bytes += size
            return number

    def unreported(self, change: int) -> None:
        """Counts messages that have left, and whose outcomes the program has not taken yet: they take room until it has."""
        with self._lock:
            self._unreported += change

    def rows_after(self, number: int, limit: int) -> List[Row]:
        """Returns the next messages in their order."""
        with self._lock, self._errors():
            query = f"SELECT {_COLUMNS} FROM outbox WHERE number > ? ORDER BY number LIMIT ?"
            rows = map(Row._make, self._opened().execute(query, (number, limit)))
            return [row._replace(may_be_repeated=bool(row.may_be_repeated)) for row in rows]

    def change(self, signed: Sequence[Row], gone: Sequence[Row], offset: Optional[int] = None) -> None:
        """Writes messages as they will be sent, takes others out, and sets the offset of the clock: all of it, or nothing."""
        with self._lock:
            with self._transaction() as db:
                db.executemany(
                    "UPDATE outbox SET message = ?, message_id = ?, timestamp = ?, sent = ?, copies = ?, may_be_repeated = ?,"
                    " clock_refusals = ?, silent_refusals = ? WHERE number = ?",
                    [(*row[3:], row.number) for row in signed],
                )
                db.executemany("DELETE FROM outbox WHERE number = ?", [(row.number,) for row in gone])
                if offset is not None:
                    db.execute("INSERT OR REPLACE INTO value VALUES ('offset', ?)", (offset,))
            if offset is not None:
                self._offset = offset
            self._messages -= len(gone)
            self._bytes -= sum(len(row.payload) + OVERHEAD for row in gone)
            self._room.notify_all()

    @property
    def offset(self) -> int:
        """The seconds that the clock is corrected by."""
        return self._offset

    # Commands

    def wait_for_room(self, timeout: float) -> bool:
        """Waits until the outbox has room for one more answer. False: the time is up."""
        with self._lock:
            return self._room.wait_for(
                lambda: self._db is None
                or self._messages < self._max_messages + ANSWER_MESSAGES
                and self._bytes + OVERHEAD + 65536 <= self._max_bytes + ANSWER_BYTES,
                timeout,
            )

    def take(self, command_id: str, expires: int) -> Tuple[str, Optional[bytes]]:
        """Takes a command that was verified. Returns new, repeated or expired; and of a repeated one the answer, if there is.

        A new one is on the disk when this returns.
        """
        with self._lock:
            decision = self._memory.decide(command_id, expires)
            if decision.result == NEW:
                with self._transaction() as db:
                    db.execute("INSERT INTO command (id, expires) VALUES (?, ?)", (decision.id, expires))
                    if decision.leaves is not None:
                        db.execute("DELETE FROM command WHERE id = ?", (decision.leaves,))
                    self._set_floor(db, decision.floor)
                self._memory.apply(decision)
                return NEW, None
            return decision.result, self._answer(decision) if decision.result == REPEATED else None

    def answer(self, key: bytes, payload: bytes) -> None:
        """Keeps the answer of a command and puts it into the outbox, unless it waits there already."""
        with self._lock:
            with self._transaction() as db:
                db.execute("UPDATE command SET answer = ? WHERE id = ?", (payload, key))
                waiting = db.execute(
                    "SELECT 1 FROM outbox WHERE command_id = ? AND message IS NULL", (key,)
                ).fetchone()
                if waiting is None:
                    self._insert(db, ANSWER, key, payload)
            if waiting is None:
                self._messages += 1
                self._bytes += len(payload) + OVERHEAD

    def _answer(self, decision: Decision) -> Optional[bytes]:
        with self._errors():
            row = self._opened().execute("SELECT answer FROM command WHERE id = ?", (decision.id,)).fetchone()
        return None if row is None else row[0]

    # The database

    @staticmethod
    def _insert(db: sqlite3.Connection, kind: int, command_id: Optional[bytes], payload: bytes) -> int:
        row = db.execute(
            "INSERT INTO outbox (kind, command_id, payload) VALUES (?, ?, ?)", (kind, command_id, payload)
        )
        assert row.lastrowid is not None
        return row.lastrowid

    @staticmethod
    def _set_floor(db: sqlite3.Connection, floor: int) -> None:
        db.execute("INSERT OR REPLACE INTO value VALUES ('floor', ?)", (floor,))

    def _make(self, device_id: str) -> None:
        """Makes the database. It has its name only when it is complete and on the disk."""
        made = self._path + ".new"
        for rest in (made, made + "-journal"):
            if os.path.lexists(rest):
                os.unlink(rest)
        os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(made, isolation_level=None)
        try:
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(f"BEGIN; PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION}; {_SCHEMA}")
            for name, value in (("device_id", device_id), ("floor", 0), ("offset", 0)):
                db.execute("INSERT INTO value VALUES (?, ?)", (name, value))
            db.execute("COMMIT")
        finally:
            db.close()
        os.rename(made, self._path)
        directory = os.open(os.path.dirname(self._path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _open(self, device_id: str) -> None:
        # The lock is this library's own, so the lock of SQLite can be kept, which needs no shared memory.
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5)
        self._db = db
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        if db.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
            raise self._damaged("it is not a database of this library")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != _VERSION:
            raise StateError("version", f"{self._path} has version {version}, and this release reads {_VERSION}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA journal_size_limit = 4194304")
        found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._damaged(str(found))
        values: Dict[str, object] = dict(db.execute("SELECT name, value FROM value"))
        floor, offset = values.get("floor"), values.get("offset")
        if not isinstance(floor, int) or not 0 <= floor <= MAX_INTEGER or not isinstance(offset, int):
            raise self._damaged("a value is missing")
        if values.get("device_id") != device_id:
            raise StateError("foreign", f"{self._path} is the state of another device, not of {device_id}")
        self._floor, self._offset = floor, offset

    def _read(self, capacity: int) -> None:
        db = self._opened()
        self._messages, self._bytes = db.execute(
            "SELECT count(*), coalesce(sum(length(payload) + ?), 0) FROM outbox", (OVERHEAD,)
        ).fetchone()
        entries = db.execute("SELECT id, expires FROM command ORDER BY place").fetchall()
        self._memory = CommandMemory(capacity, entries, self._floor)
        kept = {key for key, _ in self._memory.entries}
        if len(kept) < len(entries):  # the capacity was reduced
            with self._transaction():
                db.executemany("DELETE FROM command WHERE id = ?", [(key,) for key, _ in entries if key not in kept])
                self._set_floor(db, self._memory.floor)

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            raise StateError("state", "the state is closed")
        return self._db

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; on the disk at its end."""
        with self._errors():
            db = self._opened()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "malformed" in str(error):
                raise self._damaged(str(error)) from None
            raise StateError("state", f"{self._path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from None
        except OSError as error:
            raise StateError("state", f"{self._path}: {error.strerror}") from None

    def _damaged(self, what: str) -> StateError:
        return StateError(
            "damaged",
            f"{self._path} is damaged ({what}). It is not begun again by itself, for it remembers which commands were executed."
            " Move it away by hand: messages that wait in it are lost, and a command that has not expired may be executed again",
        )


_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()


def _forked() -> None:
    for store in list(_stores):
        store.forked()


os.register_at_fork(after_in_child=_forked)
