"""The samples of README.md run as they are: the Device on a real broker."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from . import PACKAGE
from .rig import SECRET, Broker, Client, wait_for
import bouncer_device as bouncer


class Samples(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        with open(os.path.join(PACKAGE, "README.md"), encoding="utf-8") as file:
            self.samples = dict(re.findall(r"<!-- sample: (\w+) -->\n```python\n(.*?)```", file.read(), re.DOTALL))

    def run_sample(self, name):
        environment = {**os.environ, "PYTHONPATH": os.path.join(PACKAGE, "src")}
        return subprocess.run(
            [sys.executable, "-c", self.samples[name]], cwd=self.directory, env=environment, timeout=60, check=True,
            stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip

    def test_ten_lines(self):
        lines = [line for line in self.samples["device"].splitlines() if line]
        self.assertLessEqual(len(lines), 10)
        broker = Broker()
        self.addCleanup(broker.close)
        broker.bundle(os.path.join(self.directory, "sensor_001"))
        client = Client(broker)
        self.addCleanup(client.close)
        self.assertEqual(self.run_sample("device"), "accepted \n")
        message = wait_for(lambda: client.on("device/sensor_001/data"), "the message")[0]
        envelope = bouncer.verify_message(bouncer.HMACCredential(SECRET), message)
        self.assertEqual(envelope.payload, b'{"temperature":22.5}')

    def test_core(self):
        self.assertEqual(self.run_sample("core"), "malformed\n")
