"""The core, where the vectors do not reach."""

import enum
import json
import math
import pickle
import random
import time
import unittest

from . import PACKAGE  # noqa: F401
import bouncer_device as bouncer
from bouncer_device import _json
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

ID = "550e8400-e29b-41d4-a716-446655440000"
COMMAND_ID = "01923456-789a-8bcd-8def-0123456789ab"
SECRET = bouncer.HMACCredential(b"supersecretkey123")


def pem(key):
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


class Scanner(unittest.TestCase):
    def accepts(self, text):
        try:
            _json.check_value(text, 63)
            return True
        except _json.JSONError:
            return False

    def test_against_the_module_json(self):
        """Of damaged texts, what this scanner accepts the module json accepts too, and the other way round where it is strict."""

        def unique(pairs):
            names = [name for name, _ in pairs]
            if len(set(names)) != len(names):
                raise ValueError("twice")
            return dict(pairs)

        def no_constant(name):
            raise ValueError(name)

        def reference(text):
            try:
                value = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
                json.dumps(value, ensure_ascii=False).encode("utf-8")  # unpaired surrogates
                return text == text.strip(b" \t\r\n")
            except (ValueError, RecursionError):
                return False

        seeds = [
            b'{"a":[1,-0.5e+3,true,false,null],"b":{"c":"x\\u00e9\\ud83d\\ude00\\n","d":{}},"":[]}',
            b'[[], {}, "", 0, -1, 1.25, 1E5, "\xc3\xa9\xf0\x9f\x98\x80" , {"a" : {"a" : [ ]}}]',
            b'"\\ud83d\\ude00\\\\\\"\\/"',
        ]
        pieces = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"1", b"-", b".", b"e", b" ", b"\\ud83d", b"\\ude00",
                  b"\\u0061", b'"a":1', b"\x00", b"\xff", b"\xed\xa0\x80", b"NaN", b"Infinity", b"true", b"\n"]
        generator = random.Random(1)
        agreed = {True: 0, False: 0}
        for _ in range(20000):
            text = bytearray(generator.choice(seeds))
            for _ in range(generator.randrange(1, 4)):
                at = generator.randrange(len(text) + 1)
                text[at : at + generator.randrange(3)] = generator.choice(pieces) if generator.randrange(3) else b""
            text = bytes(text)
            self.assertEqual(self.accepts(text), reference(text), text)
            agreed[self.accepts(text)] += 1
        self.assertGreater(min(agreed.values()), 1000)

    def test_time_is_linear(self):
        texts = [
            b"[" * 65000, b'{"a":' * 13000, b'"' + b"\\" * 65000, b'"' + b"\\u0061" * 10000, b'"' + b"\\ud83d" * 10000, b"-" * 65000,
            b"1" * 65000, b"1e" + b"9" * 65000 + b"x", b"[" + b"1," * 32000 + b"1]", b" " * 65000, b'["' + b'","' * 21000,
            b"{" + b",".join(b'"%d":0' % n for n in range(6000)) + b"}", b"[" + b"[]," * 21000 + b"0]", b'"' + b"x" * 65000,
            b"[" + b"{}," * 21000 + b"]", b"[" + b'"\\n",' * 13000 + b"1]",
        ]
        for text in texts:
            start = time.thread_time()  # the time of this thread, whatever else the machine does
            self.accepts(text)
            self.assertLess(time.thread_time() - start, 1.5, text[:20])

    def test_members(self):
        text = b' { "a" : [1, {"b":2}] ,"c":{"a":1}} '
        found = [(m.name, text[m.start : m.end]) for m in _json.members(text, 64)]
        self.assertEqual(found, [(b'"a"', b'[1, {"b":2}]'), (b'"c"', b'{"a":1}')])
        self.assertEqual(_json.members(b"{}", 1), [])
        for bad in (b"[]", b"", b" ", b"1", b'{"a":1', b"{} {}", b"{,}", b'{"a":1,}', b"{]", b'{"a":[}]'):
            with self.assertRaises(_json.JSONError, msg=bad):
                _json.members(bad, 64)


class Values(unittest.TestCase):
    def test_values(self):
        for value, text in [
            (None, b"null"), (True, b"true"), ("Zürich \U0001f600", '"Zürich \U0001f600"'.encode()), ((1, 2.5), b"[1,2.5]"),
            ({"b": 1, "a": [{}]}, b'{"b":1,"a":[{}]}'), (bouncer.RawJSON(" [1.0] "), b"[1.0]"), ("", b'""'), (10**30, b"1" + b"0" * 30),
        ]:
            self.assertEqual(bouncer.to_json(value), text)

    def test_what_json_does_not_have(self):
        class Text(str):
            __hash__ = object.__hash__

            def __eq__(self, other):
                return self is other

        circular = []
        circular.append(circular)
        deep = []
        for _ in range(63):
            deep = [deep]
        wide = [1]
        for _ in range(60):
            wide = [wide, wide]  # 2^60 values
        bad = [
            math.nan, math.inf, [-math.inf], {1: 1}, {None: 1}, {True: 1}, {1.5: 2}, {"1": 1, 1: 2}, {Text("a"): 1, Text("a"): 2}, b"bytes",
            {1, 2}, object(), "\ud800", {"\udc00": 1}, circular, deep, 10**5000,
        ]
        for value in bad:
            with self.assertRaises(bouncer.SignError) as caught:
                bouncer.to_json(value)
            self.assertEqual(caught.exception.reason, "payload")
        for value in ("x" * 65537, ["x" * 40000, "x" * 40000], [0] * 10**6, wide, {"x" * 70000: 1}, "é" * 40000):
            with self.assertRaises(bouncer.SignError) as caught:
                bouncer.to_json(value)
            self.assertEqual(caught.exception.reason, "too_large")
        self.assertEqual(len(bouncer.to_json("x" * 65534)), 65536)
        self.assertEqual(bouncer.to_json([[1]] * 4), b"[[1],[1],[1],[1]]")
        self.assertEqual(bouncer.to_json(enum.IntEnum("E", "A").A), b"1")

    def test_wrong_types(self):
        for timestamp in (True, 1.0, "1", None):
            with self.assertRaises(bouncer.SignError) as caught:
                bouncer.sign(SECRET, "d", timestamp, ID, "1")
            self.assertEqual(caught.exception.reason, "timestamp")
        for device_id in ("", "a/b", "ä", "a\n", "x" * 65, None, b"d"):
            with self.assertRaises(bouncer.SignError) as caught:
                bouncer.sign(SECRET, device_id, 1, ID, "1")
            self.assertEqual(caught.exception.reason, "device_id")
        for message_id in (ID + "\n", None, 1):
            with self.assertRaises(bouncer.SignError) as caught:
                bouncer.sign(SECRET, "d", 1, message_id, "1")
            self.assertEqual(caught.exception.reason, "message_id")
        for payload in (1, None, {"a": 1}, '"\ud800"'):
            with self.assertRaises(bouncer.SignError) as caught:
                bouncer.sign(SECRET, "d", 1, ID, payload)
            self.assertEqual(caught.exception.reason, "payload")

    def test_message_size(self):
        from bouncer_device.core import message_size

        message = bouncer.sign(SECRET, "sensor_001", 1727712000, ID, "[1,2]")
        self.assertEqual(message_size(SECRET, "sensor_001", 5, 1727712000), len(message))


class Answers(unittest.TestCase):
    def test_errors(self):
        deep = "[" * 63 + "]" * 63
        for arguments, reason in [
            (("x", "failed"), "command_id"), ((None, "failed"), "command_id"), ((COMMAND_ID, "done"), "status"),
            ((COMMAND_ID, None), "status"), ((COMMAND_ID, "failed", "NaN"), "result"), ((COMMAND_ID, "failed", deep), "result"),
            ((COMMAND_ID, "failed", '"' + "x" * 65500 + '"'), "too_large"), ((COMMAND_ID, "failed", "x" * 70000), "too_large"),
        ]:
            with self.assertRaises(bouncer.AnswerError) as caught:
                bouncer.answer(*arguments)
            self.assertEqual(caught.exception.reason, reason)
        bouncer.answer(COMMAND_ID, "failed", deep[1:-1])

    def test_what_is_answered_can_be_signed(self):
        payload = bouncer.answer(COMMAND_ID, "succeeded", bouncer.RawJSON(' {"a": 1} '))
        self.assertEqual(payload, b'{"command_id":"%s","status":"succeeded","result":{"a": 1}}' % COMMAND_ID.encode())
        bouncer.sign(SECRET, "d", 1, ID, payload)


class Credentials(unittest.TestCase):
    def test_secrets(self):
        bad_secrets = [b"", b"\0", b"\0\0", b" ", b" \t\r\n\v\f", "\u00a0\u2003".encode()]
        for bad in bad_secrets:
            with self.assertRaises(bouncer.CredentialError):
                bouncer.HMACCredential(b"good", bad)
        for bad in ((), (b"a",) * 9, ("text",)):
            with self.assertRaises(bouncer.CredentialError):
                bouncer.HMACCredential(*bad)
        self.assertTrue(bouncer.HMACCredential(b"new", b"old").verify_command(b"x", bouncer.HMACCredential(b"old").sign(b"x")))
        self.assertFalse(bouncer.HMACCredential(b"new").verify_command(b"x", bouncer.HMACCredential(b"old").sign(b"x")))

    def test_nothing_prints_a_secret(self):
        for text in (repr(SECRET), str(SECRET), f"{SECRET}"):
            self.assertNotIn("supersecret", text)
        with self.assertRaises(TypeError):
            pickle.dumps(SECRET)

    def test_low_s(self):
        key = ec.generate_private_key(ec.SECP256R1())
        credential = bouncer.P256Credential(key)
        for n in range(40):
            data = b"%d" % n
            signature = credential.sign(data)
            self.assertTrue(credential.verify(data, signature))
            high = (ORDER - int.from_bytes(signature[32:], "big")).to_bytes(32, "big")
            self.assertFalse(credential.verify(data, signature[:32] + high))
        for bad in (bytes(64), signature[:32] + bytes(32), bytes(32) + signature[32:], b"\xff" * 64, b"", signature[:-1]):
            self.assertFalse(credential.verify(data, bad))

    def test_callable(self):
        private = ec.generate_private_key(ec.SECP256R1())

        def der(data):
            return private.sign(data, ec.ECDSA(hashes.SHA256()))

        def raw(data):
            r, s = decode_dss_signature(der(data))
            return r.to_bytes(32, "big") + s.to_bytes(32, "big")

        own = bouncer.P256Credential(private)
        for sign, is_der in ((der, True), (raw, False)):
            credential = bouncer.CallableCredential(bouncer.ECDSA_P256, sign, public_key=pem(private.public_key()), der=is_der)
            for n in range(20):
                self.assertTrue(own.verify(b"%d" % n, credential.sign(b"%d" % n)))
        edwards = ed25519.Ed25519PrivateKey.generate()
        credential = bouncer.CallableCredential(bouncer.ED25519, edwards.sign)
        message = bouncer.sign(credential, "d", 1, ID, "1")
        bouncer.verify_message(bouncer.Ed25519Credential(edwards), message)

    def test_callable_that_fails(self):
        def broken(data):
            raise RuntimeError("no TPM")

        other = ed25519.Ed25519PrivateKey.generate().public_key()
        mine = ed25519.Ed25519PrivateKey.generate()
        for algorithm, sign, options in [
            (bouncer.ED25519, broken, {}), (bouncer.ED25519, lambda data: "text", {}), (bouncer.ED25519, lambda data: b"x", {}),
            (bouncer.ED25519, mine.sign, {"public_key": pem(other)}), (bouncer.ECDSA_P256, lambda data: bytes(64), {}),
            (bouncer.ECDSA_P256, lambda data: b"x" * 70, {}), (bouncer.ECDSA_P256, lambda data: b"x" * 70, {"der": True}),
        ]:
            with self.assertRaises(bouncer.SigningFailed):
                bouncer.sign(bouncer.CallableCredential(algorithm, sign, **options), "d", 1, ID, "1")

    def test_command_keys(self):
        gateway = ed25519.Ed25519PrivateKey.generate()
        private = ed25519.Ed25519PrivateKey.generate()
        other = ec.generate_private_key(ec.SECP256R1()).public_key()
        rsa_key = rsa.generate_private_key(65537, 2048).public_key()
        file = pem(other) + pem(rsa_key) + pem(gateway.public_key())
        credential = bouncer.Ed25519Credential(private, [file])
        self.assertTrue(credential.verify_command(b"x", gateway.sign(b"x")))
        self.assertFalse(credential.verify_command(b"x", private.sign(b"x")))
        self.assertFalse(bouncer.Ed25519Credential(private).verify_command(b"x", gateway.sign(b"x")))
        for bad in (pem(other) * 9, b"", b"text", pem(other) + b"-----BEGIN PUBLIC KEY-----\n", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"):
            with self.assertRaises(bouncer.CredentialError):
                bouncer.Ed25519Credential(private, [bad])
        with self.assertRaises(bouncer.CredentialError):
            bouncer.Ed25519Credential(private, [pem(other)] * 9)

    def test_keys_of_small_order(self):
        prefix = bytes.fromhex("302a300506032b6570032100")
        import base64

        for y in ("01" + "00" * 31, "00" * 32, "ec" + "ff" * 30 + "7f", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
                  "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"):
            text = b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(prefix + bytes.fromhex(y)) + b"\n-----END PUBLIC KEY-----\n"
            with self.assertRaises(bouncer.CredentialError, msg=y):
                bouncer.read_public_keys(text)

    def test_wrong_private_keys(self):
        p384 = ec.generate_private_key(ec.SECP384R1())
        encrypted = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x"))
        for make in (
            lambda: bouncer.P256Credential(p384), lambda: bouncer.P256Credential(encrypted), lambda: bouncer.P256Credential("x"),
            lambda: bouncer.P256Credential(ed25519.Ed25519PrivateKey.generate()), lambda: bouncer.Ed25519Credential(p384),
            lambda: bouncer.CallableCredential("RSA", bytes), lambda: bouncer.CallableCredential(bouncer.ED25519, bytes, public_key=pem(p384.public_key())),
        ):
            with self.assertRaises(bouncer.CredentialError):
                make()


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class Memory(unittest.TestCase):
    def test_a_smaller_capacity_raises_the_floor(self):
        entries = [(bytes([n]) * 16, 100 + n) for n in range(4)]
        memory = bouncer.CommandMemory(2, entries, 50)
        self.assertEqual(memory.floor, 101)
        self.assertEqual(len(memory.entries), 2)

    def test_decide_changes_nothing(self):
        memory = bouncer.CommandMemory(1)
        first = memory.decide(COMMAND_ID, 10)
        self.assertEqual((first.result, memory.entries, memory.floor), ("new", (), 0))
        memory.apply(first)
        self.assertEqual(memory.remember(COMMAND_ID.upper(), 10), "repeated")
        with self.assertRaises(ValueError):
            memory.decide("x", 1)
        with self.assertRaises(ValueError):
            bouncer.CommandMemory(0)

    def test_never_twice(self):
        """Whatever comes in whatever order, no id is new twice."""
        generator = random.Random(2)
        for _ in range(200):
            memory, taken = bouncer.CommandMemory(generator.randrange(1, 5)), set()
            expiry = {n: generator.randrange(1, 6) for n in range(10)}
            for _ in range(60):
                n = generator.randrange(10)
                command = "01923456-789a-8bcd-8def-%012x" % n
                if memory.remember(command, expiry[n]) == "new":
                    self.assertNotIn(n, taken)
                    taken.add(n)
                memory = bouncer.CommandMemory(memory.capacity, memory.entries, memory.floor)
