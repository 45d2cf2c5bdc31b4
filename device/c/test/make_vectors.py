#!/usr/bin/python3
"""Makes of device-v1.json a C table for the test program, and files for the fuzzers to start from.

usage: make_vectors.py table device-v1.json >vectors_table.h
       make_vectors.py corpus device-v1.json DIRECTORY
"""
import base64
import hashlib
import json
import os
import sys


def text_bytes(text):
    if "hex" in text:
        return bytes.fromhex(text["hex"])
    if "long" in text:
        long = text["long"]
        return long["before"].encode() + b"x" * long["x_times"] + long["after"].encode()
    return text["text"].encode()


def literal(data):
    """A C string, with octal escapes of three digits where a character is not plain. A question mark could be a trigraph."""
    plain = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\?' else "\\%03o" % b for b in data)
    return '"%s", %d' % (plain, len(data))


def text(value):
    if value is None:
        return "{NULL, 0, 0, NULL, 0}"
    if "long" in value:
        long = value["long"]
        return "{%s, %d, %s}" % (literal(long["before"].encode()), long["x_times"], literal(long["after"].encode()))
    return "{%s, 0, NULL, 0}" % literal(text_bytes(value))


def plain(value):
    return text(None if value is None else {"text": value})


def pem(value):
    return base64.b64decode("".join(line for line in value.splitlines() if not line.startswith("-----")))


def public_key(value):
    """The raw public key of a SubjectPublicKeyInfo."""
    der = pem(value)
    if der.startswith(bytes.fromhex("302a300506032b6570032100")) and len(der) == 44:
        return "BOUNCER_ED25519", der[12:]
    if der.startswith(bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")) and len(der) == 91:
        return "BOUNCER_ECDSA_P256", der[26:]
    raise ValueError("an unknown public key")


def private_key(value):
    """The seed or the number of a PKCS #8 private key."""
    der = pem(value)
    if der.startswith(bytes.fromhex("302e020100300506032b657004220420")) and len(der) == 48:
        return der[16:]
    start = bytes.fromhex("308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420")
    if der.startswith(start):
        return der[len(start):len(start) + 32]
    raise ValueError("an unknown private key")


ALGORITHMS = {"HMAC-SHA256": "BOUNCER_HMAC_SHA256", "Ed25519": "BOUNCER_ED25519", "ECDSA P-256": "BOUNCER_ECDSA_P256"}


def octets(data):
    return "{%s}" % ", ".join("0x%02x" % b for b in data)


def table(vectors):
    out = ["/* Made by make_vectors.py of device/vectors/device-v1.json. */"]
    devices = {}
    rows = []
    for n, device in enumerate(vectors["devices"]):
        devices[device["device_id"]] = n
        secrets = device.get("secrets", [])
        keys = [public_key(key) for key in device.get("command_keys", [])]
        private = private_key(device["private_key"]) if "private_key" in device else b""
        public = public_key(device["public_key"])[1] if "public_key" in device else b""
        for i, (_, data) in enumerate(keys):
            out.append("static const uint8_t key_%d_%d[] = %s;" % (n, i, octets(data)))
        rows.append("    {%s, %s, {%s}, %d, {%s}, %d, %s, %s, %d},"
                    % (plain(device["device_id"]), ALGORITHMS[device["algorithm"]],
                       ", ".join("{%s}" % literal(s.encode()) for s in secrets) or "{NULL, 0}", len(secrets),
                       ", ".join("{%s, key_%d_%d, %d}" % (algorithm, n, i, len(data))
                                 for i, (algorithm, data) in enumerate(keys)) or "{BOUNCER_HMAC_SHA256, NULL, 0}", len(keys),
                       octets(private.ljust(32, b"\0")), octets(public.ljust(65, b"\0")), len(public)))
    out += ["static const struct device_vector device_vectors[] = {"] + rows + ["};"]

    def rows_of(name, make):
        out.append("static const struct %s_vector %s_vectors[] = {" % (name, name))
        out.extend("    {%s}," % make(v) for v in vectors[{"sign": "sign", "memory": "memory"}.get(name, name + "s")])
        out.append("};")

    # A vector of an id that is not registered has the first device's credential.
    rows_of("sign", lambda v: ", ".join([
        plain(v["name"]), plain(v["device"]), str(devices.get(v["device"], 0)), "INT64_C(%d)" % v["timestamp"],
        plain(v["message_id"]), text(v["payload"]), text(v.get("message")), plain(v.get("error"))]))
    rows_of("message", lambda v: ", ".join([plain(v["name"]), str(devices[v["device"]]), text(v["message"]), plain(v["expect"])]))
    rows_of("command", lambda v: ", ".join([
        plain(v["name"]), str(devices[v["device"]]), text(v["message"]),
        "INT64_C(%d)" % v["now"] if "now" in v else "BOUNCER_NO_CLOCK", plain(v["expect"]), plain(v.get("id")),
        text(v.get("command")), "INT64_C(%d)" % v.get("expires", 0)]))
    for i, v in enumerate(vectors["memory"]):
        out.append("static const struct memory_step memory_steps_%d[] = {" % i)
        out.extend("    {%s, INT64_C(%d), %s}," % (plain(s["id"]), s["expires"], plain(s["expect"])) for s in v["steps"])
        out.append("};")
    out.append("static const struct memory_vector memory_vectors[] = {")
    out.extend("    {%s, %d, memory_steps_%d, %d}," % (plain(v["name"]), v["capacity"], i, len(v["steps"]))
               for i, v in enumerate(vectors["memory"]))
    out.append("};")
    rows_of("answer", lambda v: ", ".join([plain(v["command_id"]), plain(v["status"]), text(v.get("result")), text(v["payload"])]))
    rows_of("notice", lambda v: ", ".join([
        plain(v["name"]), text(v["message"]), "1" if v["good"] else "0", plain(v.get("message_id")), plain(v.get("reason")),
        "INT64_C(%d)" % v.get("server_time", 0)]))
    return "\n".join(out) + "\n"


def corpus(vectors, directory):
    """The fuzzers' HMAC is all zeros, so that a changed message can have a good signature."""
    def write(kind, data):
        if len(data) > 4096:
            return
        os.makedirs(os.path.join(directory, kind), exist_ok=True)
        with open(os.path.join(directory, kind, hashlib.sha256(data).hexdigest()[:16]), "wb") as file:
            file.write(data)

    for v in vectors["commands"] + vectors["messages"]:
        if v["device"] != "sensor_001":
            continue
        data = text_bytes(v["message"])
        write("command", data)
        at = data.rfind(b'"signature":"')
        if at >= 0 and len(data) > at + 13 + 64:
            write("command", data[:at + 13] + b"0" * 64 + data[at + 13 + 64:])
    for v in vectors["notices"]:
        write("command", text_bytes(v["message"]))
    for v in vectors["sign"]:
        write("payload", text_bytes(v["payload"]))
    for v in vectors["answers"]:
        write("payload", text_bytes(v["payload"]))


def main():
    with open(sys.argv[2], encoding="utf-8") as file:
        vectors = json.load(file)
    if sys.argv[1] == "table":
        sys.stdout.write(table(vectors))
    else:
        corpus(vectors, sys.argv[3])


main()
