"""The errors of the library. Each has a `reason` that never changes, for programs; its text is for people."""

from __future__ import annotations


class BouncerError(Exception):
    """The base of all errors of this library."""

    #: A word that never changes. The text of the error may change.
    reason: str = "error"

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class SignError(BouncerError):
    """What the gateway would refuse is not signed.

    reason: `device_id`, `timestamp`, `message_id`, `payload` or `too_large`.
    """


class AnswerError(BouncerError):
    """An answer cannot be made. reason: `command_id`, `status`, `result` or `too_large`."""


class CommandError(BouncerError):
    """A command is refused. reason: `malformed`, `foreign`, `forged` or `expired`."""


class VerifyError(BouncerError):
    """A message is refused. reason: `malformed` or `bad_signature`."""


class CredentialError(BouncerError):
    """A secret or a key cannot be used. reason: `credential`."""

    def __init__(self, detail: str) -> None:
        super().__init__("credential", detail)


class SigningFailed(BouncerError):
    """The function that signs raised an error, or returned no good signature. reason: `signing`."""

    def __init__(self, detail: str) -> None:
        super().__init__("signing", detail)


class BundleError(BouncerError):
    """A bundle cannot be read. reason: `bundle`."""

    def __init__(self, detail: str) -> None:
        super().__init__("bundle", detail)


class StateError(BouncerError):
    """The state directory cannot be used.

    reason: `locked` (another Device has it), `damaged`, `foreign` (another device's), `version` (a later release wrote it),
    or `state` (anything else, such as a full disk).
    """


class OutboxFull(BouncerError):
    """The outbox has no room for this message. reason: `full`."""

    def __init__(self, detail: str) -> None:
        super().__init__("full", detail)


class DeviceClosed(BouncerError):
    """The Device was closed. reason: `closed`."""

    def __init__(self) -> None:
        super().__init__("closed", "the device is closed")


class PahoError(BouncerError):
    """paho-mqtt is not installed, or this release of it cannot be used. reason: `paho`."""

    def __init__(self, detail: str) -> None:
        super().__init__("paho", detail)
