"""What the tests need around a Device: certificates, bundles, and a real broker without the plugin."""

import datetime
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import random

from . import PACKAGE  # noqa: F401
from bouncer_device import _client
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

MOSQUITTO = "/usr/sbin/mosquitto"
SECRET = b"a-secret-of-the-tests-0123456789"
WAIT = 60  # seconds at most for anything that should happen


def wait_for(condition, what="a condition", seconds=WAIT):
    """Waits until the condition is true, and returns its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"{what} did not come about within {seconds} s")


class Authority:
    """A CA, and what it issues."""

    def __init__(self, directory):
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA of the tests")])
        self.file = os.path.join(directory, "ca.crt")
        self._write(self.file, self._certificate(self.name, self.key, authority=True))

    def issue(self, directory, base, common_name, host=None):
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        self._write(os.path.join(directory, base + ".crt"), self._certificate(name, key, host=host))
        with open(os.path.join(directory, base + ".key"), "wb") as file:
            file.write(key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))

    def _certificate(self, name, key, authority=False, host=None):
        now = datetime.datetime.utcnow()
        usage = ExtendedKeyUsageOID.SERVER_AUTH if host else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(self.name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if host:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        if not authority:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    @staticmethod
    def _write(path, certificate):
        with open(path, "wb") as file:
            file.write(certificate.public_bytes(serialization.Encoding.PEM))


class Broker:
    """mosquitto with TLS on a random port of the loopback interface."""

    def __init__(self, host="localhost", refuse=(), options=""):
        self.directory = tempfile.mkdtemp()
        self.host, self.options = host, options
        self.authority = Authority(self.directory)
        self.authority.issue(self.directory, "server", "server", host=host)
        with open(os.path.join(self.directory, "acl"), "w") as file:
            file.write("topic readwrite #\n" + "".join(f"topic deny {topic}\n" for topic in refuse))
        self.process = None
        for _ in range(10):
            # Below the ports that the system gives to outgoing connections, one of which could have the port when the broker restarts.
            self.port = random.randrange(20001, 32000)
            try:
                self.start()
                return
            except AssertionError:
                self.kill()
        raise AssertionError("no broker could be started")

    def start(self):
        config = os.path.join(self.directory, "mosquitto.conf")
        with open(config, "w") as file:
            file.write(f"{self.options}listener {self.port} 127.0.0.1\n")
            if os.geteuid() == 0:
                file.write("user root\n")
            for key, value in (("cafile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key"), ("acl_file", "acl")):
                file.write(f"{key} {os.path.join(self.directory, value)}\n")
            file.write("require_certificate true\nallow_anonymous true\nlog_dest file "
                       f"{os.path.join(self.directory, 'log')}\nconnection_messages true\n")
        self.process = subprocess.Popen([MOSQUITTO, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._listens, "the broker")

    def _listens(self):
        if self.process.poll() is not None:
            raise AssertionError("the broker has ended")
        # With TLS, because another broker may have the port, and this one be about to end.
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(self.authority.file)
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as sock, tls.wrap_socket(sock, server_hostname=self.host):
                return True
        except OSError:
            return False

    def stop_running(self):
        self.process.send_signal(signal.SIGSTOP)

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def close(self):
        self.kill()
        shutil.rmtree(self.directory)

    def bundle(self, directory, device_id="sensor_001", **changes):
        """Makes a bundle as `bouncerctl device add` does, with a secret."""
        os.makedirs(directory)
        self.authority.issue(directory, "device", device_id)
        shutil.copy(self.authority.file, os.path.join(directory, "ca.crt"))
        with open(os.path.join(directory, "secret"), "wb") as file:
            file.write(SECRET + b"\n")
        members = {
            "device_id": device_id, "host": self.host, "port": self.port, "algorithm": "HMAC-SHA256", "ca": "ca.crt",
            "certificate": "device.crt", "key": "device.key", "secret": "secret", "a_member_of_later": [1],
            "topics": {name: f"device/{device_id}/{name}" for name in ("data", "response", "rejected", "command")},
            **changes,
        }
        with open(os.path.join(directory, "device.json"), "w") as file:
            json.dump(members, file)
        return directory


class Client:
    """A client of the broker, which sees every message and can publish any."""

    def __init__(self, broker):
        base = "client-%08x" % random.getrandbits(32)
        broker.authority.issue(broker.directory, base, base)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.load_verify_locations(broker.authority.file)
        tls.load_cert_chain(*(os.path.join(broker.directory, base + end) for end in (".crt", ".key")))
        self.messages = []
        client = self.client = _client._new_client(base)
        client.tls_set_context(tls)
        subscribed = []
        client.on_message = lambda client, userdata, message: self.messages.append((message.topic, bytes(message.payload)))
        client.on_subscribe = lambda *arguments: subscribed.append(True)
        client.connect(broker.host, broker.port)
        client.loop_start()
        client.subscribe("#", qos=1)
        wait_for(lambda: subscribed, "the subscription")

    def on(self, topic):
        return [payload for name, payload in list(self.messages) if name == topic]

    def publish(self, topic, payload):
        self.client.publish(topic, payload, qos=1).wait_for_publish(WAIT)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()
