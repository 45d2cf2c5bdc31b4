#!/usr/bin/env python3
"""Answers sign, verify and command orders on the standard input, a line each, as test/devices/doc.go says."""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Dict

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "src"))

import bouncer_device as bouncer  # noqa: E402


def credential_of(device: Dict[str, Any]) -> bouncer.Credential:
    if device["algorithm"] == bouncer.HMAC_SHA256:
        return bouncer.HMACCredential(*(secret.encode() for secret in device["secrets"]))
    if device["algorithm"] == bouncer.ED25519:
        return bouncer.Ed25519Credential(device["private_key"], device.get("command_keys", []))
    return bouncer.P256Credential(device["private_key"], device.get("command_keys", []))


def carry_out(order: Dict[str, Any]) -> Dict[str, Any]:
    device = order["device"]
    credential = credential_of(device)
    try:
        if order["do"] == "sign":
            message = bouncer.sign(
                credential, device["device_id"], order["timestamp"], order["message_id"], order["payload"]
            )
            return {"message": message.decode()}
        if order["do"] == "verify":
            bouncer.verify_message(credential, order["message"].encode())
            return {"result": "good"}
        command = bouncer.verify_command(credential, device["device_id"], order["message"].encode(), order.get("now"))
        return {"result": "good", "id": command.id, "command": command.text, "expires": command.expires}
    except bouncer.SignError as error:
        return {"error": error.reason}
    except (bouncer.VerifyError, bouncer.CommandError) as error:
        return {"result": error.reason}


def main() -> None:
    for line in sys.stdin.buffer:
        if line.strip():
            sys.stdout.write(json.dumps(carry_out(json.loads(line))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
