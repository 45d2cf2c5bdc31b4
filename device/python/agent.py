#!/usr/bin/env python3
"""One Device, controlled by lines on the standard input, as test/devices/doc.go says: python3 agent.py BUNDLE STATE."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from typing import Any, Dict, Tuple

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "src"))

import bouncer_device as bouncer  # noqa: E402
from bouncer_device.paho import Delivery, Device  # noqa: E402

PAYLOAD = b'"payload":'


class Agent:
    def __init__(self, bundle: str, state: str) -> None:
        self._printing = threading.RLock()
        self._offset = 0.0
        self._do = "answer"
        self._count = 0
        device = self._device = Device.from_bundle(bundle, state, clock=lambda: time.time() + self._offset)
        device.on_command = self.on_command
        device.on_outcome = self.on_outcome
        device.on_response = lambda text: self.event("response", text=text)
        device.on_connection = lambda up: self.event("connected" if up else "disconnected")
        device.on_command_refused = lambda reason: self.event("command_refused", reason=reason)
        device.on_error = lambda error: self.event("error", error=f"{type(error).__name__}: {error}")
        self.event("ready")

    def event(self, name: str, **members: Any) -> None:
        self.line(json.dumps({"event": name, **members}))

    def line(self, line: str) -> None:
        with self._printing:
            sys.stdout.buffer.write(line.encode() + b"\n")
            sys.stdout.buffer.flush()

    def on_outcome(self, delivery: Delivery) -> None:
        self.event(
            "outcome", delivery=delivery.number, outcome=delivery.outcome, reason=delivery.reason,
            message_id=delivery.message_id or "", sent=delivery.sent, may_be_repeated=delivery.may_be_repeated,
        )  # fmt: skip

    def on_command(self, command: bouncer.Command) -> Tuple[str, Any]:
        # The command as it was sent. A line break in it is white space of JSON.
        text = command.text.replace("\n", " ").replace("\r", " ")
        self.line(f'{{"event":"command","id":{json.dumps(command.id)},"command":{text}}}')
        if self._do == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._do == "fail":
            raise RuntimeError("broken")
        self._count += 1
        return "succeeded", {"n": self._count}

    def publish(self, line: bytes, at: int) -> None:
        tag = json.loads(line[:at].rstrip().rstrip(b",") + b"}")["tag"]
        text = line[at + len(PAYLOAD) :].rstrip()[:-1]
        with self._printing:  # so that the outcome is not printed before
            try:
                delivery = self._device.publish(bouncer.RawJSON(text))
                event = {"event": "queued", "tag": tag, "delivery": delivery.number}
            except bouncer.BouncerError as error:
                event = {"event": "not_queued", "tag": tag, "error": str(error)}
            self.line(json.dumps(event))

    def carry_out(self, line: bytes) -> bool:
        at = line.find(PAYLOAD)
        if at >= 0:
            self.publish(line, at)
            return True
        order: Dict[str, Any] = json.loads(line)
        if order["op"] == "start":
            self._device.start()
        elif order["op"] == "clock":
            self._offset = order["offset"]
        elif order["op"] == "on_command":
            self._do = order["do"]
        return bool(order["op"] != "stop")

    def close(self) -> None:
        self._device.close()


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    agent = Agent(sys.argv[1], sys.argv[2])
    for line in sys.stdin.buffer:
        if line.strip() and not agent.carry_out(line):
            break
    agent.close()


if __name__ == "__main__":
    main()
