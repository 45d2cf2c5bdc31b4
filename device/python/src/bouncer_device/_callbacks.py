"""Threads that call the program: it may block in a callback, publish, wait for a delivery, or close the Device."""

from __future__ import annotations

import threading
from collections import deque
from typing import Callable, Deque, Tuple


class Queue:
    """A bounded queue of work, and the thread that does it, one item at a time."""

    def __init__(self, name: str, max_items: int, max_bytes: int) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: Deque[Tuple[Callable[[], None], int, bool]] = deque()
        self._count = self._bytes = 0
        self._ended = False
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def put(self, work: Callable[[], None], size: int = 0, counted: bool = True) -> bool:
        """Adds work; False: there is no room. What is not counted is bounded by who puts it here."""
        with self._changed:
            if counted:
                if self._ended or self._count >= self._max_items or self._bytes + size > self._max_bytes:
                    return False
                self._count += 1
                self._bytes += size
            self._items.append((work, size, counted))
            self._changed.notify()
            return True

    def end(self) -> None:
        """Ends the thread when it has done what is in the queue."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._items and not self._ended:
                    self._changed.wait()
                if not self._items:
                    return
                work, size, counted = self._items.popleft()
                if counted:
                    self._count -= 1
                    self._bytes -= size
            work()
