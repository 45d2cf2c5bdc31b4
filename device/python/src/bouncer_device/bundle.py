"""Reads a bundle: the directory that `bouncerctl device add` makes for a device."""

from __future__ import annotations

import json
import os
import ssl
from typing import Any, Dict, NamedTuple, Optional, Union

from . import _json
from .core import _DEVICE_ID
from .credentials import ECDSA_P256, ED25519, HMAC_SHA256, Credential, Ed25519Credential, HMACCredential, P256Credential
from .errors import BundleError, CredentialError

_MAX_FILE = 1 << 20
_MAX_TOLERANCE = 3_000_000_000  # about 95 years

Path = Union[str, "os.PathLike[str]"]


class Topics(NamedTuple):
    data: str
    response: Optional[str]
    rejected: Optional[str]
    command: Optional[str]

    @property
    def result(self) -> Optional[str]:
        """Where answers to commands go."""
        return None if self.command is None else self.command + "/result"


class Bundle(NamedTuple):
    device_id: str
    host: str
    port: int
    topics: Topics
    credential: Credential
    #: Paths of the files in PEM.
    ca: str
    certificate: str
    key: str
    #: The gateway's, in seconds; 0: not known.
    tolerance: int = 0

    def tls(self) -> ssl.SSLContext:
        """Returns TLS with the bundle's CA alone, the host's name verified, and the device's certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.check_hostname = True
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cafile=self.ca)
            # Without a function for the password of an encrypted key, OpenSSL asks on the terminal.
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        except (OSError, ValueError) as error:
            raise BundleError(f"the CA, certificate or key cannot be used: {error}") from None
        return context


def _no_password() -> bytes:
    raise ValueError("the private key is encrypted")


def read_bundle(directory: Path, credential: Optional[Credential] = None) -> Bundle:
    """Reads the bundle in the directory. With a credential, that of the bundle is not read. Raises BundleError."""
    directory = os.fspath(directory)
    path = os.path.join(directory, "device.json")
    text = _read(path)
    try:
        _json.check_utf8(text)
        _json.members(text, 16)
        members: Dict[str, Any] = json.loads(text)
    except _json.JSONError as error:
        raise BundleError(f"{path} is not a JSON object: {error}") from None

    def text_of(name: str, values: Dict[str, Any] = members) -> str:
        value = values.get(name)
        if not isinstance(value, str) or not value or "\0" in value:
            raise BundleError(f"{path} has no text {name}")
        return value

    def file_of(name: str) -> str:
        return os.path.join(directory, text_of(name))

    device_id = text_of("device_id")
    if not _DEVICE_ID.fullmatch(device_id):
        raise BundleError(f"{path}: device_id is not 1 to 64 of A-Z a-z 0-9 . _ : -")
    port = members.get("port")
    if type(port) is not int or not 1 <= port <= 65535:
        raise BundleError(f"{path}: port is not a number from 1 to 65535")
    tolerance = members.get("tolerance", 0)
    if type(tolerance) is not int or not 0 <= tolerance <= _MAX_TOLERANCE:
        raise BundleError(f"{path}: tolerance is not a number of seconds from 0 to {_MAX_TOLERANCE}")
    topics = members.get("topics")
    if not isinstance(topics, dict):
        raise BundleError(f"{path} has no object topics")
    named: Dict[str, Optional[str]] = {}
    for name in Topics._fields:
        named[name] = None
        if name == "data" or name in topics:
            topic = text_of(name, topics)
            if "+" in topic or "#" in topic or len(topic.encode()) > 65000:
                raise BundleError(f"{path}: topic {name} is not the name of a topic")
            named[name] = topic
    data = named.pop("data")
    assert data is not None
    return Bundle(
        device_id, text_of("host"), port, Topics(data, **named),
        credential if credential is not None else _credential(members, text_of, file_of),
        file_of("ca"), file_of("certificate"), file_of("key"), tolerance,
    )  # fmt: skip


def _credential(members: Dict[str, Any], text_of: Any, file_of: Any) -> Credential:
    algorithm = text_of("algorithm")
    try:
        if algorithm == HMAC_SHA256:
            secret = _read(file_of("secret"))
            return HMACCredential(secret[:-1] if secret.endswith(b"\n") else secret)
        if algorithm not in (ED25519, ECDSA_P256):
            raise BundleError(f"the algorithm {algorithm!r} is not known")
        key = _read(file_of("signing_key"))
        keys = [_read(file_of("command_keys"))] if "command_keys" in members else []
        return Ed25519Credential(key, keys) if algorithm == ED25519 else P256Credential(key, keys)
    except CredentialError as error:
        raise BundleError(f"the credential cannot be used: {error}") from None


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _MAX_FILE:
        raise BundleError(f"{path} has more than {_MAX_FILE} bytes")
    return data
