"""Credentials: what a device signs with, and what it verifies commands with."""

from __future__ import annotations

import hashlib
import hmac
import re
from abc import ABC, abstractmethod
from typing import Callable, List, Optional, Sequence, Tuple, Union

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from .errors import CredentialError, SigningFailed

HMAC_SHA256 = "HMAC-SHA256"
ED25519 = "Ed25519"
ECDSA_P256 = "ECDSA P-256"

MAX_SECRETS = 8
MAX_COMMAND_KEYS = 8

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SPKI_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_BEGIN = re.compile(rb"-----BEGIN ")

PublicKey = Union[ed25519.Ed25519PublicKey, ec.EllipticCurvePublicKey]


class Credential(ABC):
    """Signs messages, and verifies commands. Its text shows no secret and no key. It is immutable."""

    #: `HMAC-SHA256`, `Ed25519` or `ECDSA P-256`.
    algorithm: str
    #: The bytes of a signature: 32 or 64.
    signature_size: int

    @abstractmethod
    def sign(self, data: bytes) -> bytes:
        """Returns the signature of the data."""

    @abstractmethod
    def verify(self, data: bytes, signature: bytes) -> bool:
        """Reports whether the signature is the device's own: what the gateway checks."""

    @abstractmethod
    def verify_command(self, data: bytes, signature: bytes) -> bool:
        """Reports whether the signature is the gateway's, of a command."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.algorithm}>"

    def __reduce__(self) -> str:
        raise TypeError("a credential cannot be pickled")


class HMACCredential(Credential):
    """One shared secret or several (1 to 8): the first signs, each verifies. A secret is bytes, and is not decoded."""

    algorithm = HMAC_SHA256
    signature_size = 32

    def __init__(self, *secrets: bytes) -> None:
        if not 1 <= len(secrets) <= MAX_SECRETS:
            raise CredentialError("one to eight secrets are needed")
        for secret in secrets:
            if not isinstance(secret, bytes):
                raise CredentialError("a secret must be bytes")
            # HMAC fills a key up with NUL bytes: a secret of NUL bytes is the empty key. bytes.strip knows the white space
            # of ASCII only; what is not UTF-8 is no white space.
            if not secret.strip(b"\0") or not secret.decode("utf-8", "replace").strip():
                raise CredentialError("a secret must not be empty, only NUL bytes or only white space")
        self._secrets = tuple(secrets)

    def sign(self, data: bytes) -> bytes:
        return hmac.new(self._secrets[0], data, hashlib.sha256).digest()

    def verify(self, data: bytes, signature: bytes) -> bool:
        if len(signature) != self.signature_size:
            return False
        good = False
        for secret in self._secrets:  # all of them, so that the time does not say which one was good
            good |= hmac.compare_digest(hmac.new(secret, data, hashlib.sha256).digest(), signature)
        return good

    def verify_command(self, data: bytes, signature: bytes) -> bool:
        return self.verify(data, signature)


class _KeyCredential(Credential):
    """What credentials with a private key have in common. command_keys are the gateway's, each PEM text or a key."""

    signature_size = 64

    def __init__(self, algorithm: str, public: Optional[PublicKey], command_keys: Sequence[Union[bytes, str, PublicKey]]) -> None:
        self.algorithm = algorithm
        self._public = public
        keys: List[PublicKey] = []
        for given in command_keys:
            keys.extend(read_public_keys(given) if isinstance(given, (bytes, str)) else [given])
        if len(keys) > MAX_COMMAND_KEYS:
            raise CredentialError("more than eight keys for commands")
        # A key of another algorithm than the device's own is the gateway's for other devices.
        self._command_keys = tuple(key for key in keys if _algorithm_of(key) == algorithm)

    def verify(self, data: bytes, signature: bytes) -> bool:
        return self._public is not None and _verify(self._public, data, signature)

    def verify_command(self, data: bytes, signature: bytes) -> bool:
        return any([_verify(key, data, signature) for key in self._command_keys])


class Ed25519Credential(_KeyCredential):
    """An Ed25519 key, in PEM (PKCS #8, not encrypted) or of `cryptography`."""

    def __init__(
        self,
        private_key: Union[bytes, str, ed25519.Ed25519PrivateKey],
        command_keys: Sequence[Union[bytes, str, PublicKey]] = (),
    ) -> None:
        key = _read_private_key(private_key) if isinstance(private_key, (bytes, str)) else private_key
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise CredentialError("the private key is not of Ed25519")
        super().__init__(ED25519, key.public_key(), command_keys)
        self._private = key

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


class P256Credential(_KeyCredential):
    """An ECDSA key on P-256, in PEM (not encrypted) or of `cryptography`."""

    def __init__(
        self,
        private_key: Union[bytes, str, ec.EllipticCurvePrivateKey],
        command_keys: Sequence[Union[bytes, str, PublicKey]] = (),
    ) -> None:
        key = _read_private_key(private_key) if isinstance(private_key, (bytes, str)) else private_key
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise CredentialError("the private key is not of ECDSA on P-256")
        super().__init__(ECDSA_P256, key.public_key(), command_keys)
        self._private = key

    def sign(self, data: bytes) -> bytes:
        return _raw(*decode_dss_signature(self._private.sign(data, ec.ECDSA(hashes.SHA256()))))


class CallableCredential(_KeyCredential):
    """A private key that the library does not see: in a TPM, a secure element or another process.

    algorithm   `Ed25519` or `ECDSA P-256`
    sign        gets the bytes to sign and returns the signature. For ECDSA it hashes them with SHA-256 itself. It is called
                from one thread, and may raise: the Device then tries again later
    public_key  the key's public half, in PEM or of `cryptography`. If it is given, each signature is verified before use
    der         the function returns ECDSA signatures in DER, as most libraries do, not as 64 bytes r || s
    """

    def __init__(
        self,
        algorithm: str,
        sign: Callable[[bytes], bytes],
        command_keys: Sequence[Union[bytes, str, PublicKey]] = (),
        *,
        public_key: Union[bytes, str, PublicKey, None] = None,
        der: bool = False,
    ) -> None:
        if algorithm not in (ED25519, ECDSA_P256):
            raise CredentialError("the algorithm must be Ed25519 or ECDSA P-256")
        if isinstance(public_key, (bytes, str)):
            keys = read_public_keys(public_key)
            if len(keys) != 1:
                raise CredentialError("one public key is needed")
            public_key = keys[0]
        if public_key is not None and _algorithm_of(public_key) != algorithm:
            raise CredentialError(f"the public key is not of {algorithm}")
        super().__init__(algorithm, public_key, command_keys)
        self._sign = sign
        self._der = der

    def sign(self, data: bytes) -> bytes:
        try:
            signature = self._sign(data)
        except Exception as error:
            raise SigningFailed(f"the function that signs raised {type(error).__name__}") from error
        if not isinstance(signature, (bytes, bytearray)):
            raise SigningFailed("the function that signs returned no bytes")
        signature = bytes(signature)
        if self.algorithm == ECDSA_P256:
            signature = self._normal(signature)
        if len(signature) != self.signature_size:
            raise SigningFailed(f"the function that signs returned {len(signature)} bytes, not {self.signature_size}")
        if self._public is not None and not self.verify(data, signature):
            raise SigningFailed("the function that signs returned a signature that the public key does not verify")
        return signature

    def _normal(self, signature: bytes) -> bytes:
        if self._der:
            try:
                r, s = decode_dss_signature(signature)
            except ValueError:
                raise SigningFailed("the function that signs returned no signature in DER") from None
        elif len(signature) == self.signature_size:
            r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        else:
            raise SigningFailed(f"the function that signs returned {len(signature)} bytes, not 64; der=True is for DER")
        if not (0 < r < _P256_ORDER and 0 < s < _P256_ORDER):
            raise SigningFailed("the function that signs returned numbers out of range")
        return _raw(r, s)


def _raw(r: int, s: int) -> bytes:
    """Returns r || s, with the lower of the two s that are good."""
    return r.to_bytes(32, "big") + min(s, _P256_ORDER - s).to_bytes(32, "big")


def _algorithm_of(key: object) -> Optional[str]:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ED25519
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return ECDSA_P256
    return None


def _verify(key: PublicKey, data: bytes, signature: bytes) -> bool:
    if len(signature) != 64:
        return False
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
            return True
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        if not (0 < r < _P256_ORDER and 0 < s <= _P256_ORDER // 2):
            return False
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA256()))
        return True
    except InvalidSignature:
        return False


def _read_private_key(pem: Union[bytes, str]) -> object:
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        return serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError):
        pass
    except Exception:  # UnsupportedAlgorithm, which has another base
        pass
    # The cause is not shown: the texts of the library are not known to be free of the key.
    raise CredentialError("no private key in PEM that can be read; it must not be encrypted")


def read_public_keys(pem: Union[bytes, str]) -> Tuple[PublicKey, ...]:
    """Returns the public keys of a text with one or more of them in PEM. Keys of other algorithms are left out."""
    data = pem.encode() if isinstance(pem, str) else pem
    blocks = _SPKI_PEM.findall(data)
    if not blocks or len(blocks) != len(_BEGIN.findall(data)):
        raise CredentialError("no public keys in PEM, which begin with -----BEGIN PUBLIC KEY-----")
    if len(blocks) > MAX_COMMAND_KEYS:
        raise CredentialError("more than eight public keys")
    keys: List[PublicKey] = []
    for block in blocks:
        try:
            key = serialization.load_pem_public_key(block)
        except Exception:
            raise CredentialError("a public key in PEM that cannot be read") from None
        if isinstance(key, ed25519.Ed25519PublicKey):
            _check_order(key)
            keys.append(key)
        elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
            keys.append(key)
    return tuple(keys)


_PRIME = 2**255 - 19
_D = -121665 * pow(121666, _PRIME - 2, _PRIME) % _PRIME


def _check_order(key: ed25519.Ed25519PublicKey) -> None:
    """Refuses the keys of small order: with one of them, a signature can be good for every message."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    y2 = y * y % _PRIME
    # y is 1, -1 or 0 with order 1, 2 and 4; with order 8, d y^4 + 2 y^2 - 1 = 0.
    if y >= _PRIME or y in (0, 1, _PRIME - 1) or (_D * y2 * y2 + 2 * y2 - 1) % _PRIME == 0:
        raise CredentialError("an Ed25519 key of small order")
