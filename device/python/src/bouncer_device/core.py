"""The core: turns values into bytes and bytes into values. No network, no file, no clock."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, NamedTuple, Optional, Union

from . import _json
from ._json import JSONError
from .credentials import Credential
from .errors import AnswerError, CommandError, SignError, VerifyError
from .memory import id_bytes

#: The longest message in bytes, unless set otherwise; the gateway's limit.
MAX_MESSAGE = 65536
#: The longest command in bytes: a body of 64 KiB and what is around it.
MAX_COMMAND = 66560
MAX_INTEGER = _json.MAX_INTEGER
#: How deep a payload may be nested.
MAX_DEPTH = 63

SUCCEEDED, FAILED, REJECTED = "succeeded", "failed", "rejected"
STATUSES = (SUCCEEDED, FAILED, REJECTED)

_DEVICE_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_ID_TOKEN = re.compile(rb'"[A-Za-z0-9._:-]{1,64}"')
_UUID_TOKEN = re.compile(rb'"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"')
_SIGNATURE_TOKEN = re.compile(rb'"(?:[0-9a-fA-F]{64}|[0-9a-fA-F]{128})"')
_NAMES = frozenset((b'"device_id"', b'"timestamp"', b'"message_id"', b'"payload"', b'"signature"'))

Text = Union[str, bytes]


class RawJSON:
    """JSON text, which is signed and sent as it is. A str that is not in one of these is a string of JSON."""

    __slots__ = ("text",)

    def __init__(self, text: Text) -> None:
        #: The text in UTF-8.
        self.text: bytes = _bytes(text)


class Command(NamedTuple):
    """A command that was verified."""

    #: Its id, a UUID.
    id: str
    #: The JSON text of the command, as it was sent.
    text: str
    #: When it ends, in seconds since 1970.
    expires: int

    def json(self) -> Any:
        """Returns the command as a value of Python."""
        return json.loads(self.text)


class Notice(NamedTuple):
    """A notice on the rejected topic: why a message was refused."""

    #: None if the gateway could not read it.
    message_id: Optional[str]
    reason: str
    #: The gateway's time in seconds since 1970.
    server_time: int


class Envelope(NamedTuple):
    """The members of a message, each as it was sent. The signature is of these bytes joined: signed."""

    device_id: str
    timestamp: int
    message_id: str
    payload: bytes
    signature: bytes

    @property
    def signed(self) -> bytes:
        return _signed(self.device_id, self.timestamp, self.message_id, self.payload)


def sign(
    credential: Credential,
    device_id: str,
    timestamp: int,
    message_id: str,
    payload: Union[Text, RawJSON],
    *,
    max_bytes: int = MAX_MESSAGE,
) -> bytes:
    """Returns the message to publish. The payload is JSON text: use to_json for a value of Python.

    Raises SignError with the reason `device_id`, `timestamp`, `message_id`, `payload` or `too_large`.
    """
    if not isinstance(device_id, str) or not _DEVICE_ID.fullmatch(device_id):
        raise SignError("device_id", "not 1 to 64 of A-Z a-z 0-9 . _ : -")
    if type(timestamp) is not int or not 0 <= timestamp <= MAX_INTEGER:
        raise SignError("timestamp", "not an integer from 0 to 9007199254740991")
    try:
        id_bytes(message_id)
    except (ValueError, TypeError):
        raise SignError("message_id", "not a UUID of 36 characters") from None
    if message_id[14] == "8":
        raise SignError("message_id", "a UUID of version 8, which is for commands")
    text = check_payload(payload, max_bytes)
    head = f'{{"device_id":"{device_id}","timestamp":{timestamp},"message_id":"{message_id}","payload":'.encode()
    size = len(head) + len(text) + len(b',"signature":""}') + 2 * credential.signature_size
    if size > max_bytes:
        raise SignError("too_large", f"the message would have {size} bytes, and {max_bytes} are allowed")
    signature = credential.sign(_signed(device_id, timestamp, message_id, text))
    return b"".join((head, text, b',"signature":"', signature.hex().encode(), b'"}'))


def check_payload(payload: Union[Text, RawJSON], max_bytes: int = MAX_MESSAGE) -> bytes:
    """Returns the JSON text as it is signed and sent: in UTF-8, without white space around it. Raises SignError."""
    try:
        text = (payload.text if isinstance(payload, RawJSON) else _bytes(payload)).strip(_json.WHITE_SPACE)
    except (UnicodeEncodeError, TypeError):
        raise SignError("payload", "not text in UTF-8") from None
    if len(text) > max_bytes:
        raise SignError("too_large", f"the payload has {len(text)} bytes, and {max_bytes} are allowed for the message")
    try:
        _json.check_value(text, MAX_DEPTH)
    except JSONError as error:
        raise SignError("payload", str(error)) from None
    return text


def to_json(value: Any, *, max_bytes: int = MAX_MESSAGE) -> bytes:
    """Returns the JSON text of a value of Python: None, bool, int, float, str, lists, tuples, and dictionaries with str keys.

    RawJSON is checked and returned as it is. Raises SignError with the reason `payload` or `too_large`.
    """
    if isinstance(value, RawJSON):
        return check_payload(value, max_bytes)
    try:
        text = _json.to_json(value, MAX_DEPTH, max_bytes)
    except OverflowError:
        raise SignError("too_large", f"the payload has more than {max_bytes} bytes") from None
    except JSONError as error:
        raise SignError("payload", str(error)) from None
    if len(text) > max_bytes:
        raise SignError("too_large", f"the payload has {len(text)} bytes, and {max_bytes} are allowed for the message")
    return text


def message_size(credential: Credential, device_id: str, payload_size: int, timestamp: int) -> int:
    """Returns the length in bytes of the message with such a payload."""
    members = len('{"device_id":"","timestamp":,"message_id":"","payload":,"signature":""}')
    return members + len(device_id) + len(str(timestamp)) + 36 + payload_size + 2 * credential.signature_size


def verify_message(credential: Credential, message: bytes, *, max_bytes: int = MAX_MESSAGE) -> Envelope:
    """Verifies a message of a device with the device's own credential, for the payload as sent, as the gateway does.

    Raises VerifyError with the reason `malformed` or `bad_signature`. Identity, clock and repetition are not looked at.
    """
    try:
        envelope = _read_envelope(message, max_bytes)
    except JSONError as error:
        raise VerifyError("malformed", str(error)) from None
    if not credential.verify(envelope.signed, envelope.signature):
        raise VerifyError("bad_signature")
    return envelope


def verify_command(credential: Credential, device_id: str, message: bytes, now: Optional[int] = None) -> Command:
    """Returns the command of a message on the command topic. Without now, in seconds since 1970, there is no clock.

    Raises CommandError with the reason `malformed`, `foreign`, `forged` or `expired`. Whether the command was executed before is
    the next question: see CommandMemory.
    """
    try:
        envelope = _read_envelope(message, MAX_COMMAND)
    except JSONError as error:
        raise CommandError("malformed", str(error)) from None
    if envelope.device_id != device_id:
        raise CommandError("foreign", "for another device")
    if not credential.verify_command(envelope.signed, envelope.signature):
        raise CommandError("forged", "the signature is not good")
    if envelope.message_id[14] != "8":
        raise CommandError("malformed", "the version of message_id is not 8")
    payload = envelope.payload
    try:
        found = {member.name: payload[member.start : member.end] for member in _json.members(payload, MAX_DEPTH)}
        if len(found) != 2:
            raise JSONError("the payload does not have two members")
        text, expires = found[b'"command"'], _json.integer(found[b'"expires"'])
    except (JSONError, KeyError):
        raise CommandError("malformed", "the payload is not an object of command and expires") from None
    if now is not None and now >= expires:
        raise CommandError("expired", f"it ended at {expires}")
    return Command(envelope.message_id, text.decode("utf-8"), expires)


def answer(command_id: str, status: str, result: Union[Text, RawJSON, None] = None) -> bytes:
    """Returns the payload that answers a command. The result is JSON text, or None for an answer without one.

    Raises AnswerError with the reason `command_id`, `status`, `result` or `too_large`.
    """
    try:
        id_bytes(command_id)
    except (ValueError, TypeError):
        raise AnswerError("command_id", "not a UUID of 36 characters") from None
    if status not in STATUSES:
        raise AnswerError("status", "not succeeded, failed or rejected")
    payload = f'{{"command_id":"{command_id}","status":"{status}"'.encode()
    if result is None:
        return payload + b"}"
    try:
        text = check_payload(result)
        # The result is one level deeper than the payload.
        _json.check_value(text, MAX_DEPTH - 1)
    except SignError as error:
        raise AnswerError("too_large" if error.reason == "too_large" else "result", str(error)) from None
    except JSONError as error:
        raise AnswerError("result", str(error)) from None
    payload += b',"result":' + text + b"}"
    if len(payload) > MAX_MESSAGE:
        raise AnswerError("too_large", f"the answer has {len(payload)} bytes, and {MAX_MESSAGE} are allowed for the message")
    return payload


def read_notice(message: bytes) -> Optional[Notice]:
    """Returns the notice, or None if the message is none."""
    if len(message) > MAX_COMMAND:
        return None
    try:
        _json.check_utf8(message)
        found = _values(message)
        id_token, reason = found[b'"message_id"'], found[b'"reason"']
        server_time = _json.integer(found[b'"server_time"'])
    except (JSONError, KeyError):
        return None
    if not _json.is_string(reason):
        return None
    if id_token == b"null":
        return Notice(None, _json.unescape(reason), server_time)
    if not _UUID_TOKEN.fullmatch(id_token):
        return None
    return Notice(id_token[1:-1].decode("ascii"), _json.unescape(reason), server_time)


def _values(message: bytes) -> Dict[bytes, bytes]:
    return {member.name: message[member.start : member.end] for member in _json.members(message, MAX_DEPTH + 1)}


def _read_envelope(message: bytes, max_bytes: int) -> Envelope:
    """Reads a message of docs/envelope.md. Raises JSONError."""
    if len(message) > max_bytes:
        raise JSONError(f"longer than {max_bytes} bytes")
    message = bytes(message)
    _json.check_utf8(message)
    found = _values(message)
    # The names are compared as they are written, so none of them has an escape; the scanner has found each once.
    if found.keys() != _NAMES:
        raise JSONError("not an object of the five members")
    device_id, message_id, signature = found[b'"device_id"'], found[b'"message_id"'], found[b'"signature"']
    timestamp = _json.integer(found[b'"timestamp"'])
    if not _ID_TOKEN.fullmatch(device_id):
        raise JSONError("device_id is not 1 to 64 of A-Z a-z 0-9 . _ : -")
    if not _UUID_TOKEN.fullmatch(message_id):
        raise JSONError("message_id is not a UUID of 36 characters")
    if not _SIGNATURE_TOKEN.fullmatch(signature):
        raise JSONError("signature is not 64 or 128 hexadecimal digits")
    return Envelope(
        device_id[1:-1].decode("ascii"),
        timestamp,
        message_id[1:-1].decode("ascii"),
        found[b'"payload"'],
        bytes.fromhex(signature[1:-1].decode("ascii")),
    )


def _signed(device_id: str, timestamp: int, message_id: str, payload: bytes) -> bytes:
    return f"{device_id}{timestamp}{message_id}".encode("ascii") + payload


def _bytes(text: Text) -> bytes:
    if isinstance(text, str):
        return text.encode("utf-8")
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError("JSON text must be str or bytes")
