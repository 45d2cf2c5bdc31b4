"""The device's side of mosquitto-bouncer: signs messages, and verifies commands.

This is the core: functions without network, file or clock. The Device, which connects and keeps what is not acknowledged, is
`bouncer_device.paho.Device`, and needs paho-mqtt.
"""

import logging as _logging

from .core import (
    FAILED,
    MAX_COMMAND,
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_MESSAGE,
    REJECTED,
    SUCCEEDED,
    Command,
    Envelope,
    Notice,
    RawJSON,
    answer,
    read_notice,
    sign,
    to_json,
    verify_command,
    verify_message,
)
from .credentials import (
    ECDSA_P256,
    ED25519,
    HMAC_SHA256,
    CallableCredential,
    Credential,
    Ed25519Credential,
    HMACCredential,
    P256Credential,
    read_public_keys,
)
from .errors import (
    AnswerError,
    BouncerError,
    BundleError,
    CommandError,
    CredentialError,
    DeviceClosed,
    OutboxFull,
    PahoError,
    SignError,
    SigningFailed,
    StateError,
    VerifyError,
)
from .memory import CommandMemory

__version__ = "0.1.0"

__all__ = [
    "ECDSA_P256", "ED25519", "FAILED", "HMAC_SHA256", "MAX_COMMAND", "MAX_DEPTH", "MAX_INTEGER", "MAX_MESSAGE", "REJECTED",
    "SUCCEEDED", "AnswerError", "BouncerError", "BundleError", "CallableCredential", "Command", "CommandError", "CommandMemory",
    "Credential", "CredentialError", "DeviceClosed", "Ed25519Credential", "Envelope", "HMACCredential", "Notice", "OutboxFull",
    "P256Credential", "PahoError", "RawJSON", "SignError", "SigningFailed", "StateError", "VerifyError", "answer",
    "read_notice", "read_public_keys", "sign", "to_json", "verify_command", "verify_message",
]

# Off unless the program sets logging up.
_logging.getLogger(__name__).addHandler(_logging.NullHandler())
