"""Executes commands: each once, and with an answer that is on the disk before it is sent."""

from __future__ import annotations

import logging
from typing import Any, Callable, Optional, Tuple, Union

from ._sender import Clock
from ._store import Store
from .bundle import Bundle
from .core import FAILED, REJECTED, STATUSES, Command, answer, message_size, to_json, verify_command
from .errors import AnswerError, CommandError
from .memory import EXPIRED, REPEATED, id_bytes

_log = logging.getLogger("bouncer_device")

_MAX_ERROR_TEXT = 1000

#: What a handler of commands returns: a status, or a status and a result. The result is a value as for publish; None is no result.
Answer = Union[str, Tuple[str, Any]]
Handler = Callable[[Command], Answer]


class Executor:
    """Takes messages of the command topic, one at a time, in one thread."""

    def __init__(self, store: Store, bundle: Bundle, clock: Clock, max_message: int) -> None:
        self._store = store
        self._bundle = bundle
        self._clock = clock
        self._max_message = max_message

    def take(self, message: bytes, handler: Optional[Handler], report: Callable[[BaseException], None]) -> Optional[str]:
        """Executes a command and puts its answer into the outbox. Returns why it was not executed, or None if it was.

        report gets the error of a handler that fails. Raises StateError; a command that is not on the disk is not executed.
        """
        bundle = self._bundle
        try:
            command = verify_command(bundle.credential, bundle.device_id, message, self._clock.now())
        except CommandError as error:
            return error.reason
        result, kept = self._store.take(command.id, command.expires)
        if result == EXPIRED:
            return EXPIRED
        if result == REPEATED:
            # Without an answer, an earlier process ended while it executed the command.
            payload = kept if kept is not None else answer(command.id, FAILED, b'"interrupted"')
        else:
            payload = self._execute(command, handler, report)
        self._store.answer(id_bytes(command.id), payload)
        return REPEATED if result == REPEATED else None

    def _execute(self, command: Command, handler: Optional[Handler], report: Callable[[BaseException], None]) -> bytes:
        if handler is None:
            return answer(command.id, REJECTED)
        try:
            returned = handler(command)
            status, result = returned if isinstance(returned, tuple) else (returned, None)
            if status not in STATUSES:
                status = FAILED
            return self._answer(command, status, None if result is None else to_json(result))
        except BaseException as error:  # SystemExit too: the answer is needed
            _log.error("a command failed: %s", type(error).__name__)
            report(error)
            try:
                return self._answer(command, FAILED, to_json(_plain(_text(error))))
            except AnswerError:  # the limit of a message is set very low
                return answer(command.id, FAILED)

    def _answer(self, command: Command, status: str, result: Optional[bytes]) -> bytes:
        payload = answer(command.id, status, result)
        # A timestamp has ten digits from 2001 to 2286.
        size = message_size(self._bundle.credential, self._bundle.device_id, len(payload), 10**9)
        if size > self._max_message:
            raise AnswerError("too_large", f"the message would have {size} bytes, and {self._max_message} are allowed")
        return payload


def _text(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except BaseException:  # the text of an error is made by the program, too
        return type(error).__name__


def _plain(text: str) -> str:
    """Returns a text of bounded length that JSON can have."""
    return text[:_MAX_ERROR_TEXT].encode("utf-8", "replace").decode("utf-8")
