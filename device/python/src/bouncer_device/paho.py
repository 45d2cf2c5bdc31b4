"""The Device over paho-mqtt, 1.6.1 or later: connects, keeps what is not acknowledged, and takes commands."""

from __future__ import annotations

import logging
import os
import random
import selectors
import socket
import threading
import time
import weakref
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Tuple

from . import _client
from ._callbacks import Queue
from ._commands import Executor, Handler
from ._delivery import ACCEPTED, REFUSED, UNKNOWN, Delivery
from ._sender import WINDOW, Clock, Link, Sender, Settled
from ._store import DATA, Store
from .bundle import Bundle, Path, read_bundle
from .core import MAX_MESSAGE, message_size, read_notice, to_json
from .credentials import Credential
from .errors import BouncerError, DeviceClosed, SignError, SigningFailed

__all__ = ["ACCEPTED", "REFUSED", "UNKNOWN", "Delivery", "Device"]

_log = logging.getLogger("bouncer_device")

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
_HANDSHAKE = 30.0  # seconds from the TLS connection to the SUBACK
_MISC_EVERY = 1.0
_TOLERANCE = 300


class Device:
    """A device of the gateway. Its methods may be called from any thread, from its callbacks too.

    Set the callbacks before start. Each of the two threads that call them calls one at a time: on_command has a thread of its own.

    In a process that was forked off (os.fork, or multiprocessing with fork) it is closed; the parent's goes on.
    """

    #: Gets a Command; returns a status, or a status and a result. An error that it raises is the answer `failed`.
    on_command: Optional[Handler] = None
    #: Gets the Delivery of each message that has an outcome, of those too that an earlier process left in the outbox.
    on_outcome: Optional[Callable[[Delivery], object]] = None
    #: Gets the text of a response of the backend.
    on_response: Optional[Callable[[str], object]] = None
    #: Gets True when the connection is ready, and False when it has ended.
    on_connection: Optional[Callable[[bool], object]] = None
    #: Gets the reason why a command was not executed: `malformed`, `foreign`, `forged`, `expired` or `repeated`.
    on_command_refused: Optional[Callable[[str], object]] = None
    #: Gets what else went wrong: a BouncerError, or the error of a callback or of the network.
    on_error: Optional[Callable[[BaseException], object]] = None

    def __init__(
        self,
        bundle: Bundle,
        state: Path,
        *,
        max_messages: int = 10_000,
        max_outbox_bytes: int = 16 << 20,
        max_message_bytes: int = MAX_MESSAGE,
        tolerance: Optional[int] = None,
        repeat: bool = True,
        commands: int = 256,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the state directory, which is made if there is none. See from_bundle for the settings."""
        if tolerance is None:
            tolerance = bundle.tolerance or _TOLERANCE
        for name, value, least in (
            ("max_messages", max_messages, 1), ("max_outbox_bytes", max_outbox_bytes, 1), ("tolerance", tolerance, 1),
            ("max_message_bytes", max_message_bytes, 512), ("commands", commands, 1),
        ):  # fmt: skip
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer, {least} or more")
        _client.check()
        self.bundle = bundle
        self._tls = bundle.tls()
        self._max_message = max_message_bytes
        store = self._store = Store(
            os.path.abspath(os.fspath(state)), bundle.device_id,
            max_messages=max_messages, max_bytes=max_outbox_bytes, commands=commands,
        )  # fmt: skip
        self._clock = Clock(clock, store)
        self._sender = Sender(
            store, bundle.credential, bundle.device_id, (bundle.topics.data, bundle.topics.result), self._clock,
            tolerance=tolerance, max_bytes=max_message_bytes, repeat=repeat,
        )  # fmt: skip
        self._executor = Executor(store, bundle, self._clock, max_message_bytes)
        self._lock = threading.Lock()  # of the two below
        self._deliveries: Dict[int, Delivery] = {}
        self._phase = "made"  # started, closing, closed
        self._was_ready = False  # the present connection
        self._stop = threading.Event()
        self._closed = threading.Event()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._engine = threading.Thread(target=self._run, name="bouncer-device", daemon=True)
        self._calls = Queue("bouncer-callbacks", 1024, 8 << 20)
        self._commands = Queue("bouncer-commands", 256, 4 << 20)
        _devices.add(self)

    @classmethod
    def from_bundle(
        cls,
        directory: Path,
        state: Optional[Path] = None,
        *,
        credential: Optional[Credential] = None,
        **settings: Any,
    ) -> "Device":
        """Makes a Device of the directory that `bouncerctl device add` made.

        state              the state directory; the bundle's name with `.state` behind it if absent
        credential         in place of that of the bundle: for a key in a TPM or secure element
        max_messages       of the outbox: 10,000
        max_outbox_bytes   16 MiB; each message counts with 256 bytes more than its payload
        max_message_bytes  65536: the gateway's limit
        tolerance          the gateway's, in seconds; that of the bundle, or 300, if absent. With 30 or less, what was sent before is
                           always signed again before it is sent again
        repeat             False: what may have been accepted is not signed again; its outcome is `unknown`
        commands           how many commands the memory has room for: 256
        clock              returns the system's time in seconds since 1970

        Raises BundleError, StateError or PahoError.
        """
        path = os.path.abspath(os.fspath(directory))
        return cls(read_bundle(path, credential), path + ".state" if state is None else state, **settings)

    def start(self) -> None:
        """Connects, and goes on connecting until close."""
        with self._lock:
            if self._phase in ("closing", "closed"):
                raise DeviceClosed
            if self._phase != "made":
                raise RuntimeError("the device was started before")
            self._phase = "started"
            for thread in (self._calls.thread, self._commands.thread, self._engine):
                thread.start()

    def publish(self, value: Any) -> Delivery:
        """Puts a message into the outbox, and returns when it is on the disk.

        value: None, bool, int, float, str, a list, tuple or dictionary of them, or RawJSON for JSON text that is sent as it is.
        Raises SignError with the reason `payload` or `too_large`, OutboxFull, StateError or DeviceClosed.
        """
        payload = to_json(value, max_bytes=self._max_message)
        # A timestamp has ten digits from 2001 to 2286.
        if message_size(self.bundle.credential, self.bundle.device_id, len(payload), 10**9) > self._max_message:
            raise SignError("too_large", f"the message would have more than {self._max_message} bytes")
        with self._lock:  # so that the outcome cannot come before the delivery is known
            if self._phase in ("closing", "closed"):
                raise DeviceClosed
            delivery = Delivery(self._store.add(payload))
            self._deliveries[delivery.number] = delivery
        self._sender.added()
        self._wake()
        return delivery

    def close(self, timeout: Optional[float] = None) -> bool:
        """Ends the connection in order and gives the state directory back. What is in the outbox stays there.

        It waits for a callback that runs, so many seconds at most; False: it still runs, and the state directory is in use until
        it returns. In a callback, close does not wait, and returns False.
        """
        with self._lock:
            phase = self._phase
            if phase in ("made", "started"):
                self._phase = "closing"
        if phase == "made":
            self._release()
            self._finish()
        elif phase == "started":
            self._stop.set()
            self._wake()
        if threading.current_thread() in (self._calls.thread, self._commands.thread):
            return False
        return self._closed.wait(timeout)

    @property
    def waiting(self) -> int:
        """How many messages are in the outbox."""
        return self._store.messages

    def __enter__(self) -> "Device":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # The thread of the connection

    def _run(self) -> None:
        wait = _FIRST_WAIT
        try:
            while not self._stop.is_set():
                self._was_ready = False
                try:
                    self._connect()
                except _client.Abandoned:
                    pass
                except Exception as error:
                    if not self._stop.is_set():
                        _log.warning("connection to %s:%d ended: %s", self.bundle.host, self.bundle.port, _describe(error))
                        self._report(error)
                self._sender.disconnected()
                self._step_offline()
                if self._was_ready:
                    wait = _FIRST_WAIT
                    self._call(self.on_connection, False)
                self._stop.wait(wait * random.uniform(0.5, 1))
                wait = min(2 * wait, _LONGEST_WAIT)
        finally:
            self._release()
            for queue in (self._commands, self._calls):
                queue.end()
                queue.thread.join()
            self._finish()

    def _release(self) -> None:
        """Ends the waiting for deliveries that have no outcome."""
        with self._lock:
            self._phase = "closing"
            waiting = list(self._deliveries.values())
        for delivery in waiting:
            delivery._release()

    def _forked(self) -> None:
        """Closes it in a child process, where its threads are not: called after fork, when there is one thread."""
        self._lock = threading.Lock()  # another thread may have had it, and that of the event
        self._phase = "closed"
        self._closed = threading.Event()
        self._closed.set()
        for delivery in list(self._deliveries.values()):
            delivery._forked()

    def _finish(self) -> None:
        self._store.close()
        with self._lock:
            self._phase = "closed"
            self._wake_in.close()
            self._wake_out.close()
        self._closed.set()

    def _connect(self) -> None:
        """Makes one connection, and returns or raises when it has ended."""
        bundle = self.bundle
        connection = _client.Connection(bundle.device_id, bundle.host, bundle.port, self._tls)
        opened: List[Optional[BaseException]] = []

        def open_it() -> None:
            try:
                connection.open()
                opened.append(None)
            except BaseException as error:
                opened.append(error)
            if connection.abandoned:
                connection.dispose()
            self._wake()

        # Names, TCP and TLS block. A thread of its own does them, so that close need not wait.
        opener = threading.Thread(target=open_it, name="bouncer-connect", daemon=True)
        opener.start()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_out, selectors.EVENT_READ)
            while not opened:
                if self._stop.is_set():
                    connection.abandoned = True
                    raise _client.Abandoned
                selector.select(_MISC_EVERY)
                self._drain_wake()
            failure = opened.pop()
            try:
                if failure is not None:
                    raise failure
                self._serve(connection, selector)
                connection.disconnect()
            finally:
                failure = None  # it refers to this frame, and to a socket
                connection.dispose()

    def _serve(self, connection: _client.Connection, selector: selectors.BaseSelector) -> None:
        sock = connection.socket
        if sock is None:
            raise _client.ConnectionLost("the connection ended at once")
        selector.register(sock, selectors.EVENT_READ)
        deadline: Optional[float] = time.monotonic() + _HANDSHAKE  # until the subscriptions are there
        connected: Optional[_client.Connected] = None
        misc_at = step_at = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise _client.ConnectionLost("the broker did not answer in time")
            if now >= misc_at:
                connection.misc()
                misc_at = now + _MISC_EVERY
            if self._was_ready:
                try:
                    following = self._sender.step(now)
                except SigningFailed as error:
                    _log.warning("%s", error)
                    self._report(error)
                    following = None
                finally:
                    self._settle(self._sender.take_done())
                step_at = misc_at if following is None else min(following, misc_at)
            else:
                step_at = misc_at
            want = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.want_write() else 0)
            selector.modify(sock, want)
            timeout = 0.0 if connection.pending() else max(step_at - time.monotonic(), 0.0)
            ready = {key.fileobj: events for key, events in selector.select(timeout)}
            self._drain_wake()
            if ready.get(sock, 0) & selectors.EVENT_WRITE:
                connection.write()
            if ready.get(sock, 0) & selectors.EVENT_READ or connection.pending():
                try:
                    connection.read()
                finally:
                    connected, deadline = self._events(connection, connected, deadline)
            if connection.socket is None:
                raise _client.ConnectionLost("the connection has ended")

    def _events(
        self, connection: _client.Connection, connected: Optional[_client.Connected], deadline: Optional[float]
    ) -> Tuple[Optional[_client.Connected], Optional[float]]:
        topics = self.bundle.topics
        wanted = [topic for topic in (topics.rejected, topics.command, topics.response) if topic is not None]
        for event in connection.events():
            if isinstance(event, _client.Message):
                self._received(event)
            elif isinstance(event, _client.Acknowledged):
                self._sender.acknowledged(event.mid, event.code, time.monotonic())
            elif isinstance(event, _client.Connected):
                if event.code != 0:
                    raise _client.ConnectionLost(f"the broker refused the connection with 0x{event.code:02x}")
                connected = event
                if wanted:
                    connection.subscribe(wanted)
                else:
                    deadline = None
                    self._ready(connection, connected, ())
            elif isinstance(event, _client.Subscribed) and connected is not None:
                deadline = None
                refused = [topic for topic, code in zip(wanted, event.codes) if code >= 0x80]
                for topic in refused:
                    error = BouncerError("subscription", f"the broker refused the subscription of {topic}")
                    _log.warning("%s", error)
                    self._report(error)
                self._ready(connection, connected, refused)
            elif isinstance(event, _client.Disconnected) and event.code != 0:
                raise _client.ConnectionLost(f"the broker ended the connection, or it was lost (code {event.code})")
        return connected, deadline

    def _ready(self, connection: _client.Connection, connected: _client.Connected, refused: Any) -> None:
        rejected = self.bundle.topics.rejected
        window = min(WINDOW, connected.receive_maximum)
        self._sender.connected(
            Link(connection.publish, window, rejected is not None and rejected not in refused, connected.max_packet)
        )
        self._was_ready = True
        _log.info("connected to %s:%d", self.bundle.host, self.bundle.port)
        self._call(self.on_connection, True)

    def _received(self, message: _client.Message) -> None:
        topics = self.bundle.topics
        if message.topic == topics.rejected:
            notice = read_notice(message.payload)
            if notice is not None:
                self._sender.notice(notice, time.monotonic())
        elif message.topic == topics.command:
            if not self._commands.put(lambda: self._command(message.payload), len(message.payload)):
                self._report(BouncerError("busy", "too many commands are waiting; one was left out, and comes again"))
        elif message.topic == topics.response:
            callback = self.on_response
            if callback is not None:
                try:
                    text = message.payload.decode("utf-8")
                except UnicodeDecodeError:
                    self._report(BouncerError("response", "a response that is not text in UTF-8"))
                else:
                    if not self._call(callback, text, size=len(message.payload)):
                        self._report(BouncerError("busy", "too many responses are waiting for on_response; one was dropped"))

    def _step_offline(self) -> None:
        """Writes the outcomes that the connection has left."""
        try:
            self._sender.step(time.monotonic())
        except Exception as error:
            self._report(error)
        self._settle(self._sender.take_done())

    def _settle(self, done: List[Settled]) -> None:
        for row, outcome, reason in done:
            if row.kind != DATA:
                if outcome != ACCEPTED:
                    self._report(BouncerError("answer", f"the answer to a command has the outcome {outcome} {reason}"))
                continue
            with self._lock:
                delivery = self._deliveries.pop(row.number, None) or Delivery(row.number)
            on_outcome = self.on_outcome
            if on_outcome is not None:
                self._store.unreported(1)  # first, because a program that waits for the delivery may publish at once
            delivery._settle(outcome, reason, row.message_id, row.sent, bool(row.may_be_repeated))
            if on_outcome is not None:
                self._calls.put(partial(self._outcome, delivery), counted=False)

    def _outcome(self, delivery: Delivery) -> None:
        self._store.unreported(-1)
        self._guarded(self.on_outcome, delivery)

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"\0")
        except (BlockingIOError, OSError):
            pass  # full: it is awake; closed: there is nothing to wake

    def _drain_wake(self) -> None:
        try:
            while self._wake_out.recv(4096):
                pass
        except BlockingIOError:
            pass

    # Callbacks of the program

    def _call(self, callback: Optional[Callable[..., object]], *arguments: Any, size: int = 0) -> bool:
        return callback is None or self._calls.put(lambda: self._guarded(callback, *arguments), size)

    def _guarded(self, callback: Optional[Callable[..., object]], *arguments: Any) -> None:
        if callback is None:
            return
        try:
            callback(*arguments)
        except BaseException as error:  # SystemExit too: this thread is needed
            # The text of the error is the program's, and may have a payload.
            _log.error("a callback raised %s", type(error).__name__)
            if callback is not self.on_error:
                self._report(error)

    def _report(self, error: BaseException) -> None:
        self._call(self.on_error, error)

    # The thread of the commands

    def _command(self, message: bytes) -> None:
        try:
            while not self._store.wait_for_room(1.0):
                if self._stop.is_set():
                    return
            if self._stop.is_set():
                return  # it was not begun, and comes again
            refused = self._executor.take(message, self.on_command, self._report)
        except Exception as error:
            _log.error("a command could not be taken: %s", _describe(error))
            self._report(error)
            return
        if refused is not None:
            _log.info("a command was not executed: %s", refused)
            self._call(self.on_command_refused, refused)
        self._sender.added()
        self._wake()


def _describe(error: BaseException) -> str:
    if isinstance(error, (BouncerError, OSError, _client.ConnectionLost)):
        return str(error) or type(error).__name__
    return type(error).__name__


_devices: "weakref.WeakSet[Device]" = weakref.WeakSet()


def _forked() -> None:
    for device in list(_devices):
        device._forked()


os.register_at_fork(after_in_child=_forked)
