"""A Device on a real broker without the plugin: connections, callbacks, commands."""

import contextlib
import gc
import json
import logging
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import unittest
import uuid

from . import PACKAGE
from .rig import SECRET, WAIT, Broker, Client, wait_for
import bouncer_device as bouncer
from bouncer_device import _client, _sender
from bouncer_device.core import _signed
from bouncer_device.paho import Device

DATA, RESPONSE, REJECTED, COMMAND = (f"device/sensor_001/{name}" for name in ("data", "response", "rejected", "command"))
RESULT = COMMAND + "/result"


def command_message(command, ttl=600, command_id=None, secret=SECRET, device_id="sensor_001"):
    """Makes a command as the gateway does; its own library signs none."""
    now = int(time.time())
    number = uuid.uuid4().hex
    command_id = command_id or f"{number[:8]}-{number[8:12]}-8{number[13:16]}-a{number[17:20]}-{number[20:]}"
    payload = b'{"command":%s,"expires":%d}' % (json.dumps(command).encode(), now + ttl)
    signature = bouncer.HMACCredential(secret).sign(_signed(device_id, now, command_id, payload)).hex()
    head = f'{{"device_id":"{device_id}","timestamp":{now},"message_id":"{command_id}","payload":'.encode()
    return command_id, head + payload + f',"signature":"{signature}"}}'.encode()


class OnABroker(unittest.TestCase):
    refuse = ()

    @classmethod
    def setUpClass(cls):
        cls.broker = Broker(refuse=cls.refuse)

    @classmethod
    def tearDownClass(cls):
        cls.broker.close()

    def setUp(self):
        if self.broker.process is None:
            self.broker.start()
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.bundle = self.broker.bundle(os.path.join(self.directory, "sensor_001"))
        self.errors, self.connections = [], []
        self.devices = 0

    def client(self):
        client = Client(self.broker)
        self.addCleanup(client.close)
        return client

    def device(self, bundle=None, start=True, **settings):
        device = Device.from_bundle(bundle or self.bundle, **settings)
        self.addCleanup(device.close, WAIT)
        device.on_error = self.errors.append
        device.on_connection = self.connections.append
        if start:
            self.start(device)
        return device

    def start(self, device):
        before = self.connections.count(True)
        device.start()
        wait_for(lambda: self.connections.count(True) > before, f"the connection ({self.errors})")


class Publishing(OnABroker):
    def test_publish(self):
        client, device = self.client(), self.device()
        values = [{"temperature": 22.5}, bouncer.RawJSON('{"b" : 1.0}'), "text", None, [1, 2], "x" * 65000]
        deliveries = [device.publish(value) for value in values]
        for delivery in deliveries:
            self.assertEqual(delivery.wait(WAIT), "accepted")
            self.assertEqual((delivery.reason, delivery.sent), ("", 1))
            self.assertIs(delivery.may_be_repeated, False)
        self.assertEqual(device.waiting, 0)
        messages = wait_for(lambda: len(client.on(DATA)) == len(values) and client.on(DATA))
        credential = bouncer.HMACCredential(SECRET)
        envelopes = [bouncer.verify_message(credential, message) for message in messages]
        self.assertEqual([e.message_id for e in envelopes], [d.message_id for d in deliveries])
        self.assertEqual(envelopes[1].payload, b'{"b" : 1.0}')
        self.assertLess(abs(envelopes[0].timestamp - time.time()), 30)
        self.assertTrue(device.close(25))
        self.assertEqual(self.connections, [True, False])
        self.assertEqual(self.errors, [])
        with self.assertRaises(bouncer.DeviceClosed):
            device.publish(1)
        with self.assertRaises(bouncer.DeviceClosed):
            device.start()

    def test_what_is_not_published(self):
        device = self.device(start=False)
        for value, reason in ((float("nan"), "payload"), ({1: 2}, "payload"), (bouncer.RawJSON("{"), "payload"),
                              ("x" * 65400, "too_large"), ("x" * 66000, "too_large")):
            with self.assertRaises(bouncer.SignError) as caught:
                device.publish(value)
            self.assertEqual(caught.exception.reason, reason)
        self.assertEqual(device.waiting, 0)

    def test_the_outbox_of_an_earlier_process(self):
        device = self.device(start=False)
        numbers = [device.publish(n).number for n in range(20)]
        self.assertTrue(device.close())
        outcomes = []
        device = self.device(start=False)
        device.on_outcome = outcomes.append
        self.start(device)
        wait_for(lambda: len(outcomes) == 20, "the outcomes")
        self.assertEqual([delivery.number for delivery in outcomes], numbers)
        self.assertEqual({delivery.outcome for delivery in outcomes}, {"accepted"})

    def test_many(self):
        device, client = self.device(), self.client()
        outcomes = []
        device.on_outcome = outcomes.append
        deliveries = []

        def publish(base):
            deliveries.extend(device.publish(base + n) for n in range(100))

        threads = [threading.Thread(target=publish, args=(base,)) for base in (0, 1000, 2000)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for delivery in deliveries:
            self.assertEqual(delivery.wait(WAIT), "accepted")
        wait_for(lambda: len(outcomes) == 300 and len(client.on(DATA)) == 300, "the messages")
        payloads = [json.loads(message)["payload"] for message in client.on(DATA)]
        self.assertEqual(sorted(payloads), sorted(base + n for base in (0, 1000, 2000) for n in range(100)))
        for base in (0, 1000, 2000):
            mine = [payload for payload in payloads if base <= payload < base + 1000]
            self.assertEqual(mine, sorted(mine))


class Connections(OnABroker):
    def test_the_same_bytes_once_on_each_connection(self):
        device = self.device()
        self.broker.stop_running()
        deliveries = [device.publish(n) for n in range(20)]
        rows = lambda: [row for row in device._store.rows_after(0, 30) if row.message is not None]  # noqa: E731
        first = wait_for(lambda: len(rows()) == 16 and rows(), "sixteen messages that were sent")
        self.broker.kill()
        wait_for(lambda: False in self.connections, "the end of the connection")
        self.broker.start()
        client = self.client()
        for delivery in deliveries:
            self.assertEqual(delivery.wait(WAIT), "accepted")
        messages = wait_for(lambda: len(client.on(DATA)) >= 20 and client.on(DATA), "the messages")
        self.assertEqual(messages[:16], [row.message for row in first])
        self.assertEqual(len(messages), 20)
        self.assertEqual([delivery.sent for delivery in deliveries], [2] * 16 + [1] * 4)
        self.assertEqual([delivery.may_be_repeated for delivery in deliveries], [False] * 20)
        self.assertEqual([delivery.message_id for delivery in deliveries[:16]], [row.message_id for row in first])

    def test_close_while_the_broker_does_not_answer(self):
        device = self.device()
        self.broker.stop_running()
        delivery = device.publish(1)
        start = time.monotonic()
        self.assertTrue(device.close(25))
        self.assertLess(time.monotonic() - start, 20)
        self.assertIsNone(delivery.wait(5))
        self.broker.kill()
        # And while TLS does not answer.
        self.broker.start()
        self.broker.stop_running()
        device = self.device(start=False)
        device.start()
        wait_for(lambda: any(t.name == "bouncer-connect" for t in threading.enumerate()), "the attempt")
        start = time.monotonic()
        self.assertTrue(device.close(25))
        self.assertLess(time.monotonic() - start, 20)
        self.broker.kill()
        wait_for(lambda: not any(t.name == "bouncer-connect" for t in threading.enumerate()), "the end of the attempt")

    def test_no_broker_and_then_one(self):
        self.broker.kill()
        device = self.device(start=False)
        delivery = device.publish(1)
        device.start()
        wait_for(lambda: self.errors, "the error")
        self.assertIsNone(delivery.wait(0.1))
        self.broker.start()
        self.assertEqual(delivery.wait(WAIT), "accepted")

    def test_attempts_keep_no_descriptors(self):
        """In a program with many objects Python's collector of cycles runs too seldom."""
        from bouncer_device import paho

        self.addCleanup(setattr, paho, "_FIRST_WAIT", paho._FIRST_WAIT)
        self.addCleanup(setattr, paho, "_LONGEST_WAIT", paho._LONGEST_WAIT)
        paho._FIRST_WAIT = paho._LONGEST_WAIT = 0.001
        self.broker.kill()
        failures = []
        device = self.device(start=False)
        device.on_error = lambda error: failures.append(type(error))
        self.addCleanup(gc.enable)
        gc.disable()
        device.start()

        def grown():
            before, begin = len(os.listdir("/proc/self/fd")), len(failures)
            wait_for(lambda: len(failures) >= begin + 40, "the attempts")
            return len(os.listdir("/proc/self/fd")) - before

        self.assertLess(grown(), 10)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.broker.port))
            listener.listen(50)

            def accept():
                with contextlib.suppress(OSError):
                    while True:
                        listener.accept()[0].close()

            thread = threading.Thread(target=accept)
            thread.start()
            self.addCleanup(thread.join)
            wait_for(lambda: ConnectionRefusedError not in failures[-3:], "TLS that ends at once")
            self.assertLess(grown(), 10)
            self.assertTrue(device.close(WAIT))
            listener.shutdown(socket.SHUT_RDWR)

    def test_two_at_a_time(self):
        device = self.device()
        with self.assertRaises(bouncer.StateError) as caught:
            Device.from_bundle(self.bundle)
        self.assertEqual(caught.exception.reason, "locked")
        device.close()
        self.device(start=False).close()

    def test_another_ca(self):
        other = Broker()
        self.addCleanup(other.close)
        bundle = other.bundle(os.path.join(self.directory, "other"), port=self.broker.port)
        device = self.device(bundle, start=False)
        device.start()
        wait_for(lambda: any("CERTIFICATE" in str(error).upper() for error in self.errors), "the refusal")
        self.assertEqual(self.connections, [])

    def test_another_host(self):
        other = Broker(host="broker.example.org")
        self.addCleanup(other.close)
        bundle = other.bundle(os.path.join(self.directory, "other"), host="localhost")
        device = self.device(bundle, start=False)
        device.start()
        wait_for(lambda: any("hostname" in str(error).lower() for error in self.errors), "the refusal")
        self.assertEqual(self.connections, [])

    def test_a_packet_that_is_too_large_for_the_broker(self):
        small = Broker(options="max_packet_size 2000\n")
        self.addCleanup(small.close)
        device = self.device(small.bundle(os.path.join(self.directory, "small")))
        large, delivery = device.publish("x" * 3000), device.publish("x" * 1000)
        self.assertEqual((large.wait(WAIT), large.reason, large.sent), ("refused", "mqtt 0x95", 0))
        self.assertEqual(delivery.wait(WAIT), "accepted")
        self.assertEqual(self.connections, [True])


class Refused(OnABroker):
    refuse = (DATA, REJECTED + "/x")

    def test_the_code_of_a_puback(self):
        """mosquitto says 0x87 for what the ACL denies; a client of the test is the gateway, which says why."""
        self.addCleanup(setattr, _sender, "_NOTICE_WAIT", _sender._NOTICE_WAIT)
        _sender._NOTICE_WAIT = WAIT  # for a client of the test that is slow
        client, device = self.client(), self.device()
        delivery = device.publish(1)
        row = wait_for(lambda: [r for r in device._store.rows_after(0, 1) if r.message_id], "the message")[0]
        notice = {"message_id": row.message_id, "reason": "bad_signature", "server_time": 1}
        client.publish(REJECTED, json.dumps({"message_id": None, "reason": "x", "server_time": 1}))
        client.publish(REJECTED, b"no notice")
        client.publish(REJECTED, json.dumps(notice))
        self.assertEqual(delivery.wait(WAIT), "refused")
        self.assertEqual((delivery.reason, delivery.sent), ("bad_signature", 1))
        self.assertEqual(delivery.message_id, row.message_id)

    def test_without_notices(self):
        topics = {"data": DATA}
        bundle = self.broker.bundle(os.path.join(self.directory, "other"), topics=topics)
        device = self.device(bundle)
        delivery = device.publish(1)
        self.assertEqual(delivery.wait(WAIT), "refused")
        self.assertEqual((delivery.reason, delivery.sent), ("unspecified", 3))


class SubscriptionRefused(OnABroker):
    """mosquitto 2.0 grants subscriptions whatever its ACL file says, so a refusal is put into its answer."""

    def test_it_is_reported_and_no_error(self):
        read = _client.Connection.events

        def events(connection):
            return [event._replace(codes=(0x87, 1, 1)) if isinstance(event, _client.Subscribed) else event for event in read(connection)]

        _client.Connection.events = events
        self.addCleanup(setattr, _client.Connection, "events", read)
        device = self.device()
        self.assertEqual(device.publish(1).wait(WAIT), "accepted")
        wait_for(lambda: self.errors, "the report")
        self.assertEqual(self.errors[0].reason, "subscription")
        self.assertIn(REJECTED, str(self.errors[0]))


class Commands(OnABroker):
    def answers(self, client):
        return [json.loads(message)["payload"] for message in client.on(RESULT)]

    def test_commands(self):
        client, device = self.client(), self.device(start=False)
        seen, refused = [], []

        def handler(command):
            seen.append((command.id, command.json()))
            return "succeeded" if command.json() == "plain" else ("rejected", {"n": 1})

        device.on_command, device.on_command_refused = handler, refused.append
        self.start(device)
        first, message = command_message("plain")
        second, other = command_message({"set": 1})
        client.publish(COMMAND, message)
        client.publish(COMMAND, other)
        wait_for(lambda: len(client.on(RESULT)) == 2, "the answers")
        client.publish(COMMAND, message)
        wait_for(lambda: len(client.on(RESULT)) == 3, "the answers")
        expected = [{"command_id": first, "status": "succeeded"}, {"command_id": second, "status": "rejected", "result": {"n": 1}},
                    {"command_id": first, "status": "succeeded"}]
        self.assertEqual(self.answers(client), expected)
        self.assertEqual(seen, [(first, "plain"), (second, {"set": 1})])
        for envelope in client.on(RESULT):
            bouncer.verify_message(bouncer.HMACCredential(SECRET), envelope)
        client.publish(COMMAND, message[:-3] + b'0"}')
        client.publish(COMMAND, b"x")
        client.publish(COMMAND, command_message(1, device_id="sensor_002")[1])
        client.publish(COMMAND, command_message(1, ttl=0)[1])
        client.publish(COMMAND, command_message(1, secret=b"another")[1])
        wait_for(lambda: len(refused) == 6, "the refusals")
        self.assertEqual(refused[0], "repeated")
        self.assertEqual(sorted(refused[1:]), ["expired", "foreign", "forged", "forged", "malformed"])
        self.assertEqual(len(seen), 2)

    def test_over_a_restart(self):
        client, device = self.client(), self.device(start=False)
        device.on_command = lambda command: ("succeeded", [1])
        self.start(device)
        command_id, message = command_message("once")
        client.publish(COMMAND, message)
        wait_for(lambda: len(client.on(RESULT)) == 1 and not device.waiting, "the answer")
        device.close()
        device = self.device(start=False)
        device.on_command = lambda command: self.fail("executed twice")
        self.start(device)
        client.publish(COMMAND, message)
        wait_for(lambda: len(client.on(RESULT)) == 2, "the answer again")
        self.assertEqual(self.answers(client), [{"command_id": command_id, "status": "succeeded", "result": [1]}] * 2)
        self.assertNotEqual(*(json.loads(message)["message_id"] for message in client.on(RESULT)))

    def test_interrupted(self):
        client, device = self.client(), self.device(start=False)
        command_id, message = command_message("once")
        self.assertEqual(device._store.take(command_id, 2**40), ("new", None))
        device.close()
        device = self.device(start=False)
        device.on_command = lambda command: self.fail("executed twice")
        self.start(device)
        client.publish(COMMAND, message)
        wait_for(lambda: client.on(RESULT), "the answer")
        self.assertEqual(self.answers(client), [{"command_id": command_id, "status": "failed", "result": "interrupted"}])

    def test_handlers_that_fail(self):
        class Strange:
            def __eq__(self, other):
                return False

        class NoText(Exception):
            def __str__(self):
                raise SystemExit

        client, device = self.client(), self.device()
        answers = {}
        handlers = {
            "raises": lambda command: [][1], "exits": lambda command: exit("end"), "nothing": lambda command: None,
            "other": lambda command: "done", "pair": lambda command: ("done", 1), "three": lambda command: (1, 2, 3),
            "nan": lambda command: ("succeeded", float("nan")), "large": lambda command: ("succeeded", "x" * 65400),
            "no text": lambda command: (_ for _ in ()).throw(NoText()),
            "surrogate": lambda command: (_ for _ in ()).throw(ValueError("\ud800" + "x" * 5000)), "strange": lambda command: Strange(),
        }
        for name, handler in handlers.items():
            device.on_command = handler
            command_id, message = command_message(name)
            client.publish(COMMAND, message)
            answers[name] = wait_for(lambda: [a for a in self.answers(client) if a["command_id"] == command_id], name)[0]
        self.assertEqual({answer["status"] for answer in answers.values()}, {"failed"})
        self.assertEqual(answers["raises"]["result"], "list index out of range")
        self.assertEqual(answers["exits"]["result"], "end")
        self.assertEqual(answers["pair"]["result"], 1)
        self.assertEqual(answers["no text"]["result"], "NoText")
        self.assertNotIn("result", answers["nothing"])
        self.assertIn("too_large", answers["large"]["result"])
        self.assertIn("payload", answers["nan"]["result"])
        device.on_command = None
        command_id, message = command_message("no handler")
        client.publish(COMMAND, message)
        wait_for(lambda: {"command_id": command_id, "status": "rejected"} in self.answers(client), "the answer")

    def test_an_error_longer_than_a_message(self):
        client, device = self.client(), self.device(max_message_bytes=512)
        device.on_command = lambda command: int("x" * 1000)
        command_id, message = command_message("x")
        client.publish(COMMAND, message)
        wait_for(lambda: {"command_id": command_id, "status": "failed"} in self.answers(client), "the answer")

    def test_a_handler_may_publish_and_wait_and_close(self):
        client, device = self.client(), self.device(start=False)
        seen = []

        def handler(command):
            seen.append(device.publish("from the handler").wait(WAIT))
            seen.append(device.close())
            return "succeeded"

        device.on_command = handler
        self.start(device)
        command_id, message = command_message("x")
        client.publish(COMMAND, message)
        self.assertTrue(device._closed.wait(WAIT))
        self.assertEqual(seen, ["accepted", False])
        # The answer is on the disk, and leaves after the next start.
        self.start(self.device(start=False))
        wait_for(lambda: client.on(RESULT), "the answer")
        self.assertEqual(self.answers(client), [{"command_id": command_id, "status": "succeeded"}])

    def test_other_callbacks_may_publish_and_wait_and_close(self):
        client, device = self.client(), self.device(start=False)
        texts, outcomes = [], []

        def on_response(text):
            texts.append(text)
            texts.append(device.publish("from the callback").wait(WAIT))
            raise RuntimeError("broken")

        def on_outcome(delivery):
            outcomes.append(delivery.outcome)
            if len(outcomes) == 1:
                device.publish("again")
            else:
                device.close()

        device.on_response, device.on_outcome = on_response, on_outcome
        self.start(device)
        client.publish(RESPONSE, '{"ä":1}'.encode())
        self.assertTrue(device._closed.wait(WAIT))
        self.assertEqual(texts, ['{"ä":1}', "accepted"])
        self.assertEqual(outcomes[:2], ["accepted", "accepted"])
        self.assertIn("broken", str(self.errors[0]))

    def test_callbacks_that_block_do_not_block_the_connection(self):
        client, device = self.client(), self.device(start=False, max_messages=50)
        go_on = threading.Event()
        self.addCleanup(go_on.set)
        device.on_outcome = lambda delivery: go_on.wait(2 * WAIT)
        device.on_command = lambda command: ("succeeded", go_on.wait(2 * WAIT))
        self.start(device)
        client.publish(COMMAND, command_message("x")[1])
        for _ in range(50):
            self.assertEqual(device.publish(1).wait(WAIT), "accepted")
        # What has not been reported takes room: nothing grows without bound.
        with self.assertRaises(bouncer.OutboxFull):
            for _ in range(2):
                device.publish(1).wait(WAIT)
        self.assertFalse(device.close(0.2))
        go_on.set()
        self.assertTrue(device.close(WAIT))


class Forked(OnABroker):
    def test_a_device_is_closed_in_a_child(self):
        device = self.device()
        self.broker.stop_running()
        delivery = device.publish(1)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                device.publish(2)
            except bouncer.DeviceClosed:
                code = 0 if device.close(1) and delivery.wait(1) is None else 2
            finally:
                os._exit(code)
        self.assertEqual(os.waitpid(child, 0)[1], 0)
        self.assertEqual(device.waiting, 1)
        self.broker.kill()
        self.broker.start()
        self.assertEqual(delivery.wait(WAIT), "accepted")


class Bundles(OnABroker):
    def test_what_is_wrong_with_a_bundle(self):
        path = os.path.join(self.bundle, "device.json")
        with open(path) as file:
            good = json.load(file)
        for change in (
            {"device_id": "a/b"}, {"device_id": 1}, {"host": ""}, {"port": 0}, {"port": "8883"}, {"port": True}, {"port": 65536}, {"tolerance": -1}, {"tolerance": "60"}, {"tolerance": 1e3}, {"topics": []},
            {"topics": {}}, {"topics": {"data": "a/+"}}, {"topics": {"data": "a", "command": None}}, {"algorithm": "RSA"}, {"algorithm": None},
            {"secret": "missing"}, {"ca": "missing"}, {"ca": "secret"}, {"certificate": "secret"}, {"key": "secret"},
            {"algorithm": "Ed25519", "signing_key": "device.key"}, {"algorithm": "ECDSA P-256"}, {"secret": "device.json\0"},
            {"algorithm": "ECDSA P-256", "signing_key": "device.key", "command_keys": "secret"},
        ):
            with open(path, "w") as file:
                json.dump({**good, **change}, file)
            with self.assertRaises(bouncer.BundleError, msg=change):
                Device.from_bundle(self.bundle)
        for text in (b"", b"[]", b"{", b'{"port":1,"port":2}', b"\xff", b"{}" + b" " * (1 << 20)):
            with open(path, "wb") as file:
                file.write(text)
            with self.assertRaises(bouncer.BundleError, msg=text[:10]):
                Device.from_bundle(self.bundle)
        with self.assertRaises(bouncer.BundleError):
            Device.from_bundle(self.directory)

    def test_a_secret_of_white_space(self):
        for secret in (b"", b"\n", b" \n", b"\0\n"):
            with open(os.path.join(self.bundle, "secret"), "wb") as file:
                file.write(secret)
            with self.assertRaises(bouncer.BundleError):
                Device.from_bundle(self.bundle)

    def test_a_key(self):
        path = os.path.join(self.bundle, "device.json")
        with open(path) as file:
            members = json.load(file)
        members.update(algorithm="ECDSA P-256", signing_key="device.key")
        with open(path, "w") as file:
            json.dump(members, file)
        client, device = self.client(), self.device()
        self.assertEqual(device.publish(1).wait(WAIT), "accepted")
        message = wait_for(lambda: client.on(DATA), "the message")[0]
        bouncer.verify_message(device.bundle.credential, message)

    def test_the_tolerance(self):
        bundle = self.broker.bundle(os.path.join(self.directory, "other"), tolerance=60)
        for path, settings, expected in ((self.bundle, {}, 300), (bundle, {}, 60), (bundle, {"tolerance": 10}, 10)):
            device = self.device(path, start=False, **settings)
            self.assertEqual(device._sender._tolerance, expected)
            device.close()

    def test_settings(self):
        for setting in ({"max_messages": 0}, {"max_outbox_bytes": 1.5}, {"tolerance": 0}, {"commands": 0}, {"max_message_bytes": True}):
            with self.assertRaises(ValueError):
                Device.from_bundle(self.bundle, **setting)

    def test_nothing_secret_is_logged(self):
        log = os.path.join(self.directory, "log")
        handler = logging.FileHandler(log)
        logger = logging.getLogger("bouncer_device")
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
        self.addCleanup(logger.setLevel, logging.NOTSET)
        self.addCleanup(logger.removeHandler, handler)
        client, device = self.client(), self.device(start=False)

        def fail(argument):
            raise RuntimeError("payload-of-the-tests")

        device.on_command = device.on_response = device.on_outcome = fail
        self.start(device)
        device.publish("payload-of-the-tests").wait(WAIT)
        client.publish(COMMAND, command_message("payload-of-the-tests")[1])
        client.publish(RESPONSE, b"payload-of-the-tests")
        wait_for(lambda: client.on(RESULT), "the answer")
        device.close()
        handler.close()
        with open(log) as file:
            text = file.read()
        self.assertIn("RuntimeError", text)
        for secret in ("payload-of-the-tests", SECRET.decode()):
            self.assertNotIn(secret, text)


class Paho(unittest.TestCase):
    def test_the_check(self):
        _client.check()

    def test_a_paho_that_differs(self):
        if _client._V2:
            return  # its callbacks have the code
        kept = _client._PahoOne._handle_pubackcomp
        self.addCleanup(setattr, _client._PahoOne, "_handle_pubackcomp", kept)
        del _client._PahoOne._handle_pubackcomp
        self.addCleanup(setattr, _client._paho.Client, "_handle_pubackcomp", _client._paho.Client._handle_pubackcomp)
        with self.assertRaises(bouncer.PahoError) as caught:
            _client.check()
        self.assertIn("1.6.1", str(caught.exception))

    def test_reason_codes(self):
        client = _client._new_client("x")
        if _client._V2:
            return
        seen = []
        client.on_publish = lambda client, userdata, mid: seen.append(client.puback)
        for packet, expected in ((b"\0\7", (7, 0)), (b"\0\7\x10", (7, 0x10)), (b"\0\7\x87\0", (7, 0x87))):
            message = _client._paho.MQTTMessage(7, b"x")
            message.qos = 1
            client._out_messages[7] = message
            client._in_packet = {"command": 0x40, "remaining_length": len(packet), "packet": bytearray(packet)}
            client._packet_handle()
            self.assertEqual(seen.pop(), expected)

    def test_the_core_imports_no_paho(self):
        import subprocess
        import sys

        code = "import sys, bouncer_device; assert not [m for m in sys.modules if m.startswith('paho')]"
        environment = {**os.environ, "PYTHONPATH": os.path.join(PACKAGE, "src")}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=30)
