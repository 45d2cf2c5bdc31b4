"""agent.py and crosscheck.py, as test/devices starts them."""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

from . import PACKAGE
from .rig import WAIT, Broker, Client, wait_for
from .test_device import COMMAND, RESPONSE, command_message
from .test_vectors import VECTORS
import bouncer_device as bouncer


class Agent:
    def __init__(self, bundle, state):
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(PACKAGE, "agent.py"), bundle, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.lines = queue.Queue()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))

    def order(self, line):
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def event(self, name):
        """Returns the next event of this name; others are passed over."""
        while True:
            event = self.lines.get(timeout=WAIT)
            if event["event"] == name:
                return event

    def end(self):
        self.process.stdin.close()
        code = self.process.wait(WAIT)
        self.reader.join(WAIT)
        self.process.stdout.close()
        return code


class Agents(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.broker = Broker()
        self.addCleanup(self.broker.close)
        self.client = Client(self.broker)
        self.addCleanup(self.client.close)
        self.bundle = self.broker.bundle(os.path.join(self.directory, "sensor_001"))
        self.state = os.path.join(self.directory, "a", "state")

    def agent(self):
        agent = Agent(self.bundle, self.state)
        self.addCleanup(agent.process.kill)
        agent.event("ready")
        return agent

    def test_orders(self):
        agent = self.agent()
        agent.order('{"op":"publish","tag":"a","payload":{"b" : [1.0]}}')
        queued = agent.event("queued")
        self.assertEqual(queued["tag"], "a")
        agent.order('{"op":"publish","tag":"b","payload":NaN}')
        self.assertIn("payload", agent.event("not_queued")["error"])
        agent.order('{"op":"start"}')
        agent.event("connected")
        outcome = agent.event("outcome")
        wait_for(lambda: self.client.on("device/sensor_001/data"), "the message")  # which the broker acknowledges before
        self.assertEqual(outcome.pop("message_id"), bouncer.verify_message(
            bouncer.HMACCredential(b"a-secret-of-the-tests-0123456789"), self.client.on("device/sensor_001/data")[0]).message_id)
        self.assertIs(outcome["may_be_repeated"], False)  # 0 is equal to it
        self.assertEqual(outcome, {"event": "outcome", "delivery": queued["delivery"], "outcome": "accepted", "reason": "", "sent": 1,
                                   "may_be_repeated": False})
        self.client.publish(RESPONSE, b"text")
        self.assertEqual(agent.event("response")["text"], "text")
        agent.order('{"op":"clock","offset":-3600}')
        agent.order('{"op":"publish","tag":"c","payload":1}')
        agent.event("outcome")
        wait_for(lambda: len(self.client.on("device/sensor_001/data")) == 2, "the second message")
        first, second = (json.loads(m)["timestamp"] for m in self.client.on("device/sensor_001/data"))
        self.assertLess(abs(first - 3600 - second), 30)
        for do, expected in (("answer", ("succeeded", {"n": 1})), ("fail", ("failed", "broken"))):
            agent.order(json.dumps({"op": "on_command", "do": do}))
            agent.order('{"op":"publish","tag":"in order","payload":1}')
            agent.event("queued")
            command_id, message = command_message({"do": do})
            self.client.publish(COMMAND, message)
            command = agent.event("command")
            self.assertEqual((command["id"], command["command"]), (command_id, {"do": do}))
            answers = lambda: [json.loads(m)["payload"] for m in self.client.on(COMMAND + "/result")]  # noqa: E731
            wait_for(lambda: {"command_id": command_id, "status": expected[0], "result": expected[1]} in answers(), "the answer")
        self.client.publish(COMMAND, message)
        self.assertEqual(agent.event("command_refused")["reason"], "repeated")
        agent.order('{"op":"stop"}')
        self.assertEqual(agent.end(), 0)

    def test_die_and_the_end_of_the_input(self):
        agent = self.agent()
        agent.order('{"op":"start"}')
        agent.event("connected")
        agent.order('{"op":"on_command","do":"die"}')
        agent.order('{"op":"publish","tag":"in order","payload":1}')
        agent.event("outcome")
        command_id, message = command_message("x")
        self.client.publish(COMMAND, message)
        agent.event("command")
        self.assertEqual(agent.end(), -9)
        agent = self.agent()
        agent.order('{"op":"start"}')
        agent.event("connected")
        self.client.publish(COMMAND, message)
        answers = lambda: [json.loads(m)["payload"] for m in self.client.on(COMMAND + "/result")]  # noqa: E731
        wait_for(lambda: answers(), "the answer")
        self.assertEqual(answers()[0], {"command_id": command_id, "status": "failed", "result": "interrupted"})
        self.assertEqual(agent.end(), 0)


class CrossCheck(unittest.TestCase):
    def test_it(self):
        with open(VECTORS, encoding="utf-8") as file:
            vectors = json.load(file)
        devices = {device["device_id"]: device for device in vectors["devices"]}
        orders, expected = [], []
        for vector in vectors["sign"]:
            if vector["device"] in devices and "text" in vector["payload"] and "text" in vector.get("message", {"text": ""}):
                order = {key: vector[key] for key in ("timestamp", "message_id")}
                orders.append({"do": "sign", "device": devices[vector["device"]], "payload": vector["payload"]["text"], **order})
                expected.append({"error": vector["error"]} if "error" in vector else vector.get("message") and
                                {"message": vector["message"]["text"]})
        for section, do in (("messages", "verify"), ("commands", "command")):
            for vector in vectors[section]:
                if "text" in vector["message"] and "text" in vector.get("command", {"text": ""}):
                    order = {"do": do, "device": devices[vector["device"]], "message": vector["message"]["text"]}
                    if "now" in vector:
                        order["now"] = vector["now"]
                    orders.append(order)
                    answer = {"result": vector["expect"]}
                    if do == "command" and vector["expect"] == "good":
                        answer.update(id=vector["id"], command=vector["command"]["text"], expires=vector["expires"])
                    expected.append(answer)
        self.assertGreater(len(orders), 700)
        result = subprocess.run(
            [sys.executable, os.path.join(PACKAGE, "crosscheck.py")], input="\n".join(map(json.dumps, orders)) + "\n",
            stdout=subprocess.PIPE, text=True, check=True, timeout=60,
        )  # fmt: skip
        answers = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual(len(answers), len(expected))
        for order, answer, wanted in zip(orders, answers, expected):
            if wanted is None:  # an ECDSA signature differs each time
                self.assertIn("message", answer)
            else:
                self.assertEqual(answer, wanted, order)
