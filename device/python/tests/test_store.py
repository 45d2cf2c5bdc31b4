"""The state on the disk: full, damaged, used by two, killed at any point."""

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
import unittest

from . import PACKAGE
import bouncer_device as bouncer
from bouncer_device._sender import Clock, Link, Sender
from bouncer_device._store import ANSWER_MESSAGES, OVERHEAD, Store
from bouncer_device.memory import id_bytes, id_text

KILLS = 50


def command_id(n):
    return "01923456-789a-8bcd-8def-%012x" % n


class InADirectory(unittest.TestCase):
    def setUp(self):
        self.parent = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.parent)
        self.directory = os.path.join(self.parent, "state")
        self.stores = []
        self.addCleanup(lambda: [store.close() for store in self.stores])

    def open(self, directory=None, device_id="d", max_messages=1000, max_bytes=1 << 24, commands=256):
        store = Store(directory or self.directory, device_id, max_messages=max_messages, max_bytes=max_bytes, commands=commands)
        self.stores.append(store)
        return store

    def refused(self, reason, **options):
        with self.assertRaises(bouncer.StateError) as caught:
            self.open(**options)
        self.assertEqual(caught.exception.reason, reason)
        return str(caught.exception)


class Outbox(InADirectory):
    def test_full(self):
        store = self.open(max_messages=3)
        for _ in range(3):
            store.add(b"1")
        with self.assertRaises(bouncer.OutboxFull):
            store.add(b"1")
        rows = store.rows_after(0, 10)
        store.change([], rows[:1])
        store.add(b"2")
        with self.assertRaises(bouncer.OutboxFull):
            store.add(b"1")
        store.close()
        store = self.open(max_messages=3)
        self.assertEqual([row.payload for row in store.rows_after(0, 10)], [b"1", b"1", b"2"])
        with self.assertRaises(bouncer.OutboxFull):
            store.add(b"1")

    def test_full_of_bytes(self):
        store = self.open(max_bytes=2 * (100 + OVERHEAD))
        store.add(bytes(100))
        store.add(bytes(99))
        with self.assertRaises(bouncer.OutboxFull):
            store.add(bytes(2))
        store.close()
        store = self.open(max_bytes=2 * (100 + OVERHEAD))
        with self.assertRaises(bouncer.OutboxFull):
            store.add(bytes(2))
        store.change([], store.rows_after(0, 1))
        store.add(bytes(100))

    def test_room_for_answers(self):
        store = self.open(max_messages=1)
        store.add(b"1")
        for n in range(ANSWER_MESSAGES):
            self.assertTrue(store.wait_for_room(0))
            store.answer(id_bytes(command_id(n)), b"{}")
        self.assertFalse(store.wait_for_room(0.01))
        store.answer(id_bytes(command_id(0)), b"{}")  # it is there already
        self.assertEqual(store.messages, 1 + ANSWER_MESSAGES)
        store.change([], store.rows_after(0, 1))
        self.assertTrue(store.wait_for_room(0))

    def test_numbers_are_never_used_twice(self):
        store = self.open()
        first = store.add(b"1")
        store.change([], store.rows_after(0, 1))
        store.close()
        self.assertGreater(self.open().add(b"1"), first)

    def test_the_disk_does_not_grow(self):
        store = self.open(max_messages=100)
        sizes = []
        for _ in range(4):
            for _ in range(100):
                store.add(bytes(3000))
            store.change([], store.rows_after(0, 100))
            sizes.append(sum(os.path.getsize(os.path.join(self.directory, name)) for name in os.listdir(self.directory)))
        self.assertLess(sizes[-1], 8 << 20)
        self.assertLess(sizes[-1] - sizes[1], 1 << 20)

    def test_only_the_owner_may_read_it(self):
        store = self.open()
        store.add(b"1")
        self.assertEqual(stat.S_IMODE(os.stat(self.directory).st_mode), 0o700)
        names = os.listdir(self.directory)
        self.assertIn("state.db-wal", names)
        for name in names:
            self.assertEqual(stat.S_IMODE(os.stat(os.path.join(self.directory, name)).st_mode), 0o600, name)


class Memory(InADirectory):
    def test_over_restarts(self):
        """The memory on the disk is the memory of the core, whatever happens between two commands."""
        generator = random.Random(5)
        model = bouncer.CommandMemory(3)
        store = self.open(commands=3)
        for _ in range(300):
            n, expires = generator.randrange(12), generator.randrange(1, 50)
            result, answer = store.take(command_id(n), expires)
            self.assertEqual(result, model.remember(command_id(n), expires))
            self.assertEqual((store._memory.entries, store._memory.floor), (model.entries, model.floor))
            if result == "repeated":
                self.assertIn(answer, (None, b"%d" % n))
            elif generator.randrange(2):
                store.answer(id_bytes(command_id(n)), b"%d" % n)
            if not generator.randrange(3):
                store.close()
                store = self.open(commands=3)

    def test_a_smaller_capacity(self):
        store = self.open(commands=4)
        for n in range(4):
            store.take(command_id(n), 100 + n)
        store.close()
        store = self.open(commands=2)
        self.assertEqual(store.take(command_id(1), 101), ("expired", None))
        self.assertEqual(store.take(command_id(3), 103), ("repeated", None))
        store.close()
        store = self.open(commands=4)
        self.assertEqual(store.take(command_id(0), 100), ("expired", None))

    def test_ids(self):
        self.assertEqual(id_text(id_bytes(command_id(7).upper())), command_id(7))

    def test_a_command_that_cannot_be_written_is_not_taken(self):
        store = self.open()
        store._db.execute("PRAGMA query_only = 1")
        with self.assertRaises(bouncer.StateError):
            store.take(command_id(1), 100)
        store._db.execute("PRAGMA query_only = 0")
        self.assertEqual(store.take(command_id(1), 100), ("new", None))


class Damage(InADirectory):
    def setUp(self):
        super().setUp()
        store = self.open()
        for n in range(200):
            store.add(b'"%0500d"' % n)
            store.take(command_id(n), 1000 + n)
        store.close()
        self.file = os.path.join(self.directory, "state.db")

    def test_two_at_a_time(self):
        store = self.open()
        self.refused("locked")
        store.close()
        self.open().close()

    def test_another_device(self):
        self.refused("foreign", device_id="e")

    def test_a_later_version(self):
        db = sqlite3.connect(self.file)
        db.execute("PRAGMA user_version = 2")
        db.close()
        self.refused("version")

    def test_no_database(self):
        for content in (b"", b"text", bytes(4096)):
            with open(self.file, "wb") as file:
                file.write(content)
            self.assertIn("executed", self.refused("damaged"))
            with open(self.file, "rb") as file:
                self.assertEqual(file.read(), content)  # it is left as it is

    def test_another_database(self):
        os.unlink(self.file)
        db = sqlite3.connect(self.file)
        db.execute("CREATE TABLE x (y)")
        db.commit()
        db.close()
        self.refused("damaged")

    def test_damaged_pages(self):
        with open(self.file, "rb") as file:
            good = file.read()
        generator, refused = random.Random(6), 0
        for _ in range(40):
            at = generator.randrange(1, len(good) // 4096) * 4096
            with open(self.file, "wb") as file:
                file.write(good[:at] + generator.randbytes(4096) + good[at + 4096 :])
            try:
                store = self.open()
            except bouncer.StateError as error:
                self.assertEqual(error.reason, "damaged")
                refused += 1
                continue
            store.close()  # a page that is not used
        self.assertGreater(refused, 20)

    def test_a_file_that_was_cut_off(self):
        with open(self.file, "rb") as file:
            good = file.read()
        for size in (1, 100, 4096, len(good) // 2, len(good) - 4096):
            with open(self.file, "wb") as file:
                file.write(good[:size])
            self.refused("damaged")

    def test_a_value_that_is_missing(self):
        for name in ("floor", "offset", "device_id"):
            db = sqlite3.connect(self.file)
            db.execute("UPDATE value SET name = 'x' WHERE name = ?", (name,))
            db.commit()
            db.close()
            self.refused("foreign" if name == "device_id" else "damaged")
            db = sqlite3.connect(self.file)
            db.execute("UPDATE value SET name = ? WHERE name = 'x'", (name,))
            db.commit()
            db.close()

    def test_a_crash_while_it_was_made(self):
        shutil.rmtree(self.directory)
        os.mkdir(self.directory)
        for content in (b"", b"SQLite", bytes(5000)):
            with open(self.file + ".new", "wb") as file:
                file.write(content)
            self.open().close()
            os.unlink(self.file)

    def test_a_damaged_end_of_the_journal(self):
        """As a failure of the power leaves it: the last commits are lost, and nothing else."""
        store = self.open()
        for n in range(200, 240):
            store.add(b'"%0500d"' % n)
        copy = os.path.join(self.parent, "copy")
        shutil.copytree(self.directory, copy)
        store.close()
        with open(os.path.join(copy, "state.db-wal"), "rb") as file:
            journal = file.read()
        self.assertGreater(len(journal), 40 * 500)
        generator, counts = random.Random(7), set()
        for n in range(40):
            broken = os.path.join(self.parent, f"broken{n}")
            shutil.copytree(copy, broken)
            at = generator.randrange(len(journal))
            with open(os.path.join(broken, "state.db-wal"), "wb") as file:
                file.write(journal[:at] + (generator.randbytes(len(journal) - at) if n % 2 else b""))
            store = self.open(broken)
            payloads = [row.payload for row in store.rows_after(0, 1000)]
            self.assertEqual(payloads, [b'"%0500d"' % n for n in range(len(payloads))])
            self.assertGreaterEqual(len(payloads), 200)
            self.assertEqual(store.take(command_id(5), 1005)[0], "repeated")
            counts.add(len(payloads))
            store.close()
            shutil.rmtree(broken)
        self.assertGreater(len(counts), 5)

    def test_a_directory_that_cannot_be_used(self):
        self.refused("state", directory=os.path.join(self.file, "x"))


class Forked(InADirectory):
    def test_a_child_touches_nothing(self):
        """A child that ends as programs do would close the database, and remove the journal that the parent writes."""
        code = (
            "import os, signal, sys\n"
            "from bouncer_device._store import Store\n"
            "store = Store(sys.argv[1], 'd', max_messages=10, max_bytes=10000, commands=1)\n"
            "store.add(b'1')\n"
            "if os.fork() == 0:\n"
            "    try:\n"
            "        store.add(b'of the child')\n"
            "    except Exception:\n"
            "        sys.exit(7)\n"
            "    sys.exit(0)\n"
            "assert os.WEXITSTATUS(os.wait()[1]) == 7\n"
            "store.add(b'2')\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.path.join(PACKAGE, "src")}
        process = subprocess.run([sys.executable, "-c", code, self.directory], env=environment, timeout=60)
        self.assertEqual(process.returncode, -signal.SIGKILL)
        store = self.open()
        self.addCleanup(store.close)
        self.assertEqual([row.payload for row in store.rows_after(0, 10)], [b"1", b"2"])

    def test_a_child_does_not_keep_the_lock(self):
        code = (
            "import os, signal, sys\n"
            "from bouncer_device._store import Store\n"
            "store = Store(sys.argv[1], 'd', max_messages=10, max_bytes=10000, commands=1)\n"
            "read, write = os.pipe()\n"
            "if os.fork() == 0:\n"
            "    os.write(write, b'x')\n"
            "    sys.stdin.read()\n"
            "    os._exit(0)\n"
            "os.read(read, 1)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.path.join(PACKAGE, "src")}
        process = subprocess.Popen([sys.executable, "-c", code, self.directory], env=environment, stdin=subprocess.PIPE)
        self.addCleanup(process.stdin.close)  # which ends the child
        self.assertEqual(process.wait(60), -signal.SIGKILL)
        self.open().close()

    def test_closing_gives_the_lock_back_while_a_child_has_the_file(self):
        store = self.open()
        copy = os.dup(store._lock_file)
        self.addCleanup(os.close, copy)
        store.close()
        self.open().close()


class Killed(InADirectory):
    """A process is killed at a random point, and the next one goes on where it was, fifty times."""

    def test_it(self):
        reports = []
        generator = random.Random(8)
        started = time.monotonic()
        for kill in range(KILLS):
            reports += self.child(generator.uniform(0.002, 0.08), kill)
            self.assertLess(time.monotonic() - started, 150)
            self.compare(reports)
        kinds = {kind for kind, *_ in reports}
        self.assertEqual(kinds, {"queueing", "queued", "sent", "acked", "left", "executed"})
        self.assertGreater(sum(kind == "left" for kind, *_ in reports), KILLS)

    def child(self, seconds, seed):
        """Runs a process for this time, kills it, and returns what it has reported."""
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                os.close(read)
                self.work(lambda *words: os.write(write, (" ".join(map(str, words)) + "\n").encode()), random.Random(seed))
            except BaseException as error:
                os.write(write, f"error {error!r}\n".encode())
            finally:
                os._exit(1)
        os.close(write)
        os.set_blocking(read, False)
        output, end = b"", time.monotonic() + 60
        while b"\n" not in output and time.monotonic() < end:  # it has begun
            time.sleep(0.001)
            output += self.drain(read)
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        output += self.drain(read)
        os.close(read)
        return [line.split() for line in output.decode().splitlines()]

    @staticmethod
    def drain(read):
        output = b""
        while True:
            try:
                part = os.read(read, 65536)
            except BlockingIOError:
                return output
            if not part:
                return output
            output += part

    def work(self, report, generator):
        """Publishes, sends and acknowledges without end, and takes commands."""
        store = Store(self.directory, "d", max_messages=200, max_bytes=1 << 24, commands=4)
        sender = Sender(store, bouncer.HMACCredential(b"secret"), "d", ("data", "result"), Clock(time.time, store))
        mids = {}

        def send(topic, message):
            mid = len(mids) + 1
            mids[mid] = True
            report("sent", bouncer.verify_message(bouncer.HMACCredential(b"secret"), message).payload.decode(),
                   hashlib.sha256(message).hexdigest())
            return mid

        sender.connected(Link(send, 16, True, None))
        while True:
            if generator.randrange(2) and store.messages < 100:
                tag = generator.getrandbits(48)
                report("queueing", tag)
                store.add(b"%d" % tag)
                report("queued", tag)
                sender.added()
            n, expires = generator.randrange(8), generator.randrange(1, 100)
            if not generator.randrange(4) and store.take(command_id(n), expires)[0] == "new":
                report("executed", n, expires)
            sender.step(0.0)
            for mid in [mid for mid in mids if mid in sender._by_mid and generator.randrange(2)]:
                report("acked", sender._by_mid[mid].row.payload.decode())
                sender.acknowledged(mid, 0, 0.0)
            sender.step(0.0)
            for settled in sender.take_done():
                report("left", settled.row.payload.decode())

    def compare(self, reports):
        """Holds what is on the disk against everything that was reported."""
        self.assertEqual([report for report in reports if report[0] == "error"], [])
        said = {}
        for kind, tag, *rest in reports:
            said.setdefault(kind, {}).setdefault(tag, []).append(rest)
        store = self.open()
        rows = {row.payload.decode(): row for row in store.rows_after(0, 10000)}
        store.close()
        queued, queueing = set(said.get("queued", ())), set(said.get("queueing", ()))
        left, acked = set(said.get("left", ())), set(said.get("acked", ()))
        # What was queued is there, until it was acknowledged; what was reported to have left is not.
        self.assertEqual(queued - acked - set(rows), set())
        self.assertEqual(left & set(rows), set())
        self.assertEqual(set(rows) - queueing, set())
        self.assertLessEqual(left, acked)
        for tag, copies in said.get("sent", {}).items():
            # Every copy is the same, for each was on the disk before it was sent.
            self.assertEqual(len({digest for digest, in copies}), 1)
            if tag in rows:
                self.assertEqual(hashlib.sha256(rows[tag].message).hexdigest(), copies[0][0])
        # No command was executed twice with the same expiry, and none below the floor.
        for n, times in said.get("executed", {}).items():
            self.assertEqual(len(times), len({tuple(one) for one in times}), n)
            expiries = [int(one) for one, in times]
            self.assertEqual(expiries, sorted(expiries), n)
