"""The vectors, which the gateway and the other libraries pass too."""

import json
import os
import unittest

from . import PACKAGE
import bouncer_device as bouncer
from crosscheck import credential_of

VECTORS = os.path.join(PACKAGE, "..", "vectors", "device-v1.json")


def text_of(text):
    if "hex" in text:
        return bytes.fromhex(text["hex"])
    if "long" in text:
        long = text["long"]
        return (long["before"] + "x" * long["x_times"] + long["after"]).encode()
    return text["text"].encode()


class Vectors(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with open(VECTORS, encoding="utf-8") as file:
            cls.vectors = json.load(file)
        cls.devices = {device["device_id"]: device for device in cls.vectors["devices"]}
        cls.credentials = {name: credential_of(device) for name, device in cls.devices.items()}

    def test_every_section_is_known(self):
        known = {"comment", "devices", "sign", "messages", "commands", "memory", "answers", "notices"}
        self.assertEqual(set(self.vectors), known)
        for section in known:
            self.assertTrue(self.vectors[section], section)

    def test_sign(self):
        for vector in self.vectors["sign"]:
            with self.subTest(vector["name"]):
                # A device id that is not good belongs to no device.
                device = vector["device"]
                credential = self.credentials.get(device, self.credentials["sensor_001"])
                arguments = (credential, device, vector["timestamp"], vector["message_id"], text_of(vector["payload"]))
                if "error" in vector:
                    with self.assertRaises(bouncer.SignError) as caught:
                        bouncer.sign(*arguments)
                    self.assertEqual(caught.exception.reason, vector["error"])
                    continue
                message = bouncer.sign(*arguments)
                if "message" in vector:
                    self.assertEqual(message, text_of(vector["message"]))
                else:
                    self.assertEqual(self.devices[device]["algorithm"], bouncer.ECDSA_P256)
                envelope = bouncer.verify_message(credential, message)
                self.assertEqual(envelope.payload, text_of(vector["payload"]).strip(b" \t\r\n"))

    def test_messages(self):
        for vector in self.vectors["messages"]:
            with self.subTest(vector["name"]):
                try:
                    bouncer.verify_message(self.credentials[vector["device"]], text_of(vector["message"]))
                    result = "good"
                except bouncer.VerifyError as error:
                    result = error.reason
                self.assertEqual(result, vector["expect"])

    def test_commands(self):
        for vector in self.vectors["commands"]:
            with self.subTest(vector["name"]):
                credential = self.credentials[vector["device"]]
                try:
                    command = bouncer.verify_command(
                        credential, vector["device"], text_of(vector["message"]), vector.get("now")
                    )
                except bouncer.CommandError as error:
                    self.assertEqual(error.reason, vector["expect"])
                    continue
                self.assertEqual("good", vector["expect"])
                self.assertEqual(command.id, vector["id"])
                self.assertEqual(command.text.encode(), text_of(vector["command"]))
                self.assertEqual(command.expires, vector["expires"])

    def test_memory(self):
        for vector in self.vectors["memory"]:
            with self.subTest(vector["name"]):
                memory = bouncer.CommandMemory(vector["capacity"])
                for step in vector["steps"]:
                    self.assertEqual(memory.remember(step["id"], step["expires"]), step["expect"], step)
                    self.assertLessEqual(len(memory.entries), vector["capacity"])

    def test_memory_over_restarts(self):
        for vector in self.vectors["memory"]:
            with self.subTest(vector["name"]):
                entries, floor = (), 0
                for step in vector["steps"]:
                    memory = bouncer.CommandMemory(vector["capacity"], entries, floor)
                    self.assertEqual(memory.remember(step["id"], step["expires"]), step["expect"], step)
                    entries, floor = memory.entries, memory.floor

    def test_answers(self):
        for vector in self.vectors["answers"]:
            with self.subTest(vector["status"]):
                result = text_of(vector["result"]) if "result" in vector else None
                payload = bouncer.answer(vector["command_id"], vector["status"], result)
                self.assertEqual(payload, text_of(vector["payload"]))

    def test_notices(self):
        for vector in self.vectors["notices"]:
            with self.subTest(vector["name"]):
                notice = bouncer.read_notice(text_of(vector["message"]))
                if not vector["good"]:
                    self.assertIsNone(notice)
                    continue
                expected = (vector.get("message_id"), vector["reason"], vector["server_time"])
                self.assertEqual(tuple(notice), expected)
