"""What is sent when, and what the answers mean: device/README.md, "Sending again", "Outcomes" and "The clock"."""

import json
import random
import shutil
import tempfile
import unittest

from . import PACKAGE  # noqa: F401
import bouncer_device as bouncer
from bouncer_device._sender import Clock, Link, Sender
from bouncer_device._store import Store

SECRET = b"supersecretkey123"
CREDENTIAL = bouncer.HMACCredential(SECRET)


class Bench(unittest.TestCase):
    """A Sender with a real store, and a link and clocks of the test."""

    def setUp(self):
        self.directory = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.directory)
        self.system = 1_000_000_000.0
        self.now = 0.0
        self.credential = CREDENTIAL
        self.options = {}
        self.sender = None
        self.begin()
        self.addCleanup(lambda: self.store.close())

    def begin(self, **options):
        """As a new process does."""
        if self.sender is not None:
            self.store.close()
        self.store = Store(self.directory, "d", max_messages=1000, max_bytes=1 << 24, commands=4)
        self.clock = Clock(lambda: self.system, self.store)
        self.sender = Sender(self.store, self.credential, "d", ("data", "result"), self.clock, **{**self.options, **options})
        self.sent, self.done = [], []
        self.mid = 0

    def connect(self, window=65535, notices=True, max_packet=None):
        self.sender.connected(Link(self._send, window, notices, max_packet))
        self.mid = 0
        self.sent = []
        self.step()

    def _send(self, topic, message):
        self.mid += 1
        self.sent.append((self.mid, message))
        return self.mid

    def step(self, seconds=0.0):
        self.now += seconds
        self.system += seconds
        self.following = self.sender.step(self.now)
        self.done += self.sender.take_done()

    def ack(self, mid, code=0):
        self.sender.acknowledged(mid, code, self.now)
        self.step()

    def notice(self, mid, reason, server_time=None):
        notice = bouncer.Notice(self.id(mid), reason, int(self.system) if server_time is None else server_time)
        self.sender.notice(notice, self.now)
        self.step()

    def refuse(self, mid, reason, server_time=None):
        self.ack(mid, 0x87)
        self.notice(mid, reason, server_time)

    def publish(self, *payloads):
        numbers = [self.store.add(str(payload).encode()) for payload in payloads]
        self.sender.added()
        return numbers

    def message(self, mid):
        return dict(self.sent)[mid]

    def id(self, mid):
        return json.loads(self.message(mid))["message_id"]

    def payloads(self):
        return [json.loads(message)["payload"] for _, message in self.sent]

    def outcome(self):
        """Returns the only outcome."""
        self.assertEqual(len(self.done), 1)
        self.assertEqual(self.store.messages, 0)
        settled = self.done.pop()
        self.assertIsInstance(settled.row.may_be_repeated, bool)
        return settled.outcome, settled.reason, settled.row.sent, settled.row.may_be_repeated


class Sending(Bench):
    def test_in_order_and_at_most_16(self):
        self.publish(*range(40))
        self.step()
        self.assertEqual(self.sent, [])
        self.connect()
        self.assertEqual(self.payloads(), list(range(16)))
        self.ack(3)
        self.assertEqual(self.payloads(), list(range(17)))
        for mid in range(1, 41):
            if mid != 3:
                self.ack(mid)
        self.assertEqual(self.payloads(), list(range(40)))
        self.assertEqual(len(self.done), 40)
        self.assertEqual({settled.outcome for settled in self.done}, {"accepted"})
        self.assertEqual(self.store.messages, 0)
        self.assertIsNone(self.following)

    def test_what_the_broker_takes_at_a_time(self):
        self.publish(*range(5))
        self.connect(window=2)
        self.assertEqual(len(self.sent), 2)

    def test_signed_and_on_the_disk_before_it_is_sent(self):
        self.publish(1)
        seen = []

        def send(topic, message):
            row = self.store.rows_after(0, 1)[0]
            seen.append((row.message, row.sent, row.copies, topic))
            return 1

        self.sender.connected(Link(send, 16, True, None))
        self.step()
        self.assertEqual(seen[0][1:], (1, 1, "data"))
        bouncer.verify_message(CREDENTIAL, seen[0][0])

    def test_a_commit_that_fails_sends_nothing(self):
        self.publish(1)
        change, self.store.change = self.store.change, None
        self.store.change = lambda *arguments: (_ for _ in ()).throw(bouncer.StateError("state", "full"))
        with self.assertRaises(bouncer.StateError):
            self.connect()
        self.assertEqual(self.sent, [])
        self.store.change = change
        self.step()
        self.assertEqual(len(self.sent), 1)
        self.store.change = lambda *arguments: (_ for _ in ()).throw(bouncer.StateError("state", "full"))
        with self.assertRaises(bouncer.StateError):
            self.ack(1)
        self.assertEqual(self.done, [])
        self.store.change = change
        self.step()
        self.assertEqual(self.outcome(), ("accepted", "", 1, False))

    def test_again_after_a_new_connection(self):
        self.publish(1, 2, 3)
        self.connect()
        first = [message for _, message in self.sent]
        self.ack(2)
        for _ in range(3):
            self.sender.disconnected()
            self.step(1)
            self.publish("9")
            self.connect()
            self.assertEqual([message for _, message in self.sent[:2]], [first[0], first[2]])
            self.step(100 / 3)
            self.assertEqual(self.payloads().count(1), 1)
        self.ack(1)
        self.assertEqual(self.done[-1].row.sent, 4)
        self.assertFalse(self.done[-1].row.may_be_repeated)

    def test_again_after_a_crash(self):
        self.publish(1, 2)
        self.connect()
        first = [message for _, message in self.sent]
        self.begin()
        self.connect()
        self.assertEqual([message for _, message in self.sent], first)
        self.ack(2)
        self.refuse(1, "replay")
        self.assertEqual([settled.outcome for settled in self.done], ["accepted", "accepted"])

    def test_too_old_after_a_new_connection(self):
        for repeat in (True, False):
            self.begin(repeat=repeat)
            self.publish(1)
            self.connect()
            first = self.message(1)
            self.sender.disconnected()
            self.step(270)
            self.connect()
            self.assertEqual(self.message(1), first)
            self.sender.disconnected()
            self.step(1)
            self.connect()
            if not repeat:
                self.assertEqual(self.sent, [])
                self.assertEqual(self.outcome(), ("unknown", "too_old", 2, False))
                continue
            second = json.loads(self.message(1))
            self.assertNotEqual(second["message_id"], json.loads(first)["message_id"])
            self.assertEqual(second["timestamp"], int(self.system))
            self.ack(1)
            self.assertEqual(self.outcome(), ("accepted", "", 3, True))

    def test_may_be_repeated_over_a_crash(self):
        self.publish(1)
        self.connect()
        self.begin()
        self.step(271)
        self.connect()
        self.begin()
        self.connect()
        self.ack(1)
        self.assertEqual(self.outcome(), ("accepted", "", 3, True))

    def test_too_large_for_the_broker(self):
        self.publish('"' + "x" * 1000 + '"', 1)
        self.connect(max_packet=1000)
        self.assertEqual(self.payloads(), [1])
        self.ack(1)
        self.assertEqual([(s.outcome, s.reason) for s in self.done], [("refused", "mqtt 0x95"), ("accepted", "")])

    def test_a_link_that_breaks(self):
        self.publish(1, 2, 3)
        calls = []

        def send(topic, message):
            calls.append(message)
            if len(calls) == 2:
                raise ConnectionError
            return len(calls)

        self.sender.connected(Link(send, 16, True, None))
        with self.assertRaises(ConnectionError):
            self.step()
        self.sender.disconnected()
        self.connect()
        self.assertEqual(self.payloads(), [1, 2, 3])
        self.assertEqual([message for _, message in self.sent[:2]], calls)


class Outcomes(Bench):
    def test_codes(self):
        for code, expected in [
            (0x00, ("accepted", "")), (0x10, ("accepted", "")), (0x80, ("refused", "mqtt 0x80")), (0x97, ("refused", "mqtt 0x97")),
            (0x99, ("refused", "mqtt 0x99")),
        ]:
            self.publish(1)
            self.connect()
            self.ack(1, code)
            self.assertEqual(self.outcome(), (*expected, 1, False))
            self.sender.disconnected()
        self.publish(1)
        self.connect()
        with self.assertRaises(bouncer.BouncerError):
            self.ack(1, 0x01)

    def test_unknown_packet_id(self):
        self.connect()
        self.ack(99, 0x87)
        self.assertEqual(self.done, [])

    def test_a_reason(self):
        for before in (True, False):
            self.publish(1)
            self.connect()
            if before:
                self.notice(1, "bad_signature")
                self.assertEqual(self.done, [])
                self.ack(1, 0x87)
            else:
                self.ack(1, 0x87)
                self.step(1.9)
                self.assertEqual(self.done, [])
                self.notice(1, "bad_signature")
            self.assertEqual(self.outcome(), ("refused", "bad_signature", 1, False))
            self.sender.disconnected()

    def test_notices_of_others(self):
        self.publish(1)
        self.connect()
        self.ack(1, 0x87)
        for message_id in (None, "550e8400-e29b-41d4-a716-446655440000"):
            self.sender.notice(bouncer.Notice(message_id, "stale", 5), self.now)
        self.step()
        self.assertEqual((self.done, self.clock.offset), ([], 0))

    def test_a_notice_before_it_was_sent_again(self):
        """It is of the first copy, and as old as the connection was away."""
        self.publish(1)
        self.connect()
        self.sender.disconnected()
        self.sender.notice(bouncer.Notice(self.id(1), "stale", 5), self.now)
        self.connect()
        self.ack(1, 0)
        self.assertEqual(self.clock.offset, 0)
        self.assertEqual(self.outcome(), ("accepted", "", 2, False))

    def test_accepted_in_spite_of_a_notice(self):
        self.publish(1)
        self.connect()
        self.notice(1, "stale")
        self.ack(1, 0)
        self.assertEqual(self.outcome(), ("accepted", "", 1, False))

    def test_stale(self):
        self.system = 5.0
        self.publish(1)
        self.connect()
        self.assertEqual(json.loads(self.message(1))["timestamp"], 5)
        self.refuse(1, "stale", 1_700_000_000)
        self.assertEqual(json.loads(self.message(2))["timestamp"], 1_700_000_000)
        self.assertNotEqual(self.id(1), self.id(2))
        self.ack(2)
        self.assertEqual(self.outcome(), ("accepted", "", 2, False))
        self.begin()
        self.assertEqual(self.clock.now(), 1_700_000_000)

    def test_stale_three_times(self):
        for reason in ("stale", "future"):
            self.publish(1)
            self.connect()
            self.refuse(1, reason)
            self.refuse(2, reason)
            self.assertEqual(self.done, [])
            self.refuse(3, reason)
            self.assertEqual(self.outcome(), ("refused", reason, 3, False))
            self.sender.disconnected()

    def test_stale_after_it_was_sent_before(self):
        for repeat, expected in ((True, ("accepted", "", 3, True)), (False, ("unknown", "stale", 2, False))):
            self.begin(repeat=repeat)
            self.publish(1)
            self.connect()
            self.sender.disconnected()
            self.connect()
            self.refuse(1, "stale")
            if repeat:
                self.ack(2)
            self.assertEqual(self.outcome(), expected)

    def test_replay(self):
        self.publish(1)
        self.connect()
        self.refuse(1, "replay")
        self.assertEqual(self.outcome(), ("refused", "replay", 1, False))
        self.publish(1)
        self.step()
        self.sender.disconnected()
        self.connect()
        self.refuse(1, "replay")
        self.assertEqual(self.outcome(), ("accepted", "", 2, False))

    def test_pauses(self):
        for reason in ("rate_limited", "overloaded", "internal"):
            self.publish(1, 2)
            self.connect(window=1)
            first, times = self.message(1), []
            for mid in range(1, 9):
                start = self.now
                self.refuse(mid, reason)
                while len(self.sent) == mid:
                    self.assertLess(self.now - start, 70)
                    self.step(0.25)
                times.append(self.now - start)
                if sum(times) < 270:
                    self.assertEqual(self.message(mid + 1), first)
            self.assertEqual(times, [1, 2, 4, 8, 16, 32, 60, 60])
            self.assertEqual(self.payloads(), [1] * 9)
            self.ack(9)
            self.assertEqual(self.payloads(), [1] * 9 + [2])
            start = self.now
            self.refuse(10, reason)  # the pauses begin at one second again
            self.step(1)
            self.ack(11)
            self.assertEqual([(s.outcome, s.row.sent, s.row.may_be_repeated) for s in self.done],
                             [("accepted", 9, 0), ("accepted", 2, 0)])
            self.done = []
            self.sender.disconnected()

    def test_a_pause_too_long_for_the_message(self):
        self.publish(1)
        self.connect()
        first = self.id(1)
        for mid in range(1, 10):
            self.refuse(mid, "overloaded")
            self.step(60)
        self.assertNotEqual(self.id(self.mid), first)
        self.ack(self.mid)
        outcome = self.outcome()
        self.assertEqual((outcome[0], outcome[3]), ("accepted", False))  # each copy was refused, so it is not repeated

    def test_a_pause_over_a_new_connection(self):
        self.publish(1)
        self.connect()
        self.refuse(1, "overloaded")
        self.sender.disconnected()
        self.connect()
        self.assertEqual(self.sent, [])
        self.assertEqual(self.following, 1.0)
        self.step(1)
        self.assertEqual(len(self.sent), 1)

    def test_nothing_else_in_a_pause(self):
        self.publish(*range(30))
        self.connect()
        self.refuse(1, "rate_limited")
        for mid in range(2, 17):
            self.ack(mid)
        self.assertEqual(len(self.sent), 16)
        self.step(1)
        self.assertEqual(self.payloads()[16:], [0])
        self.ack(17)
        self.assertGreater(len(self.sent), 17)

    def test_no_notice(self):
        self.publish(1)
        self.connect()
        for mid in (1, 2):
            self.ack(mid, 0x87)
            self.step(2)
            self.assertEqual(len(self.sent), mid)
            self.step(2)
            self.assertEqual(len(self.sent), mid + 1)
        self.assertEqual(len({self.id(1), self.id(2), self.id(3)}), 3)
        self.ack(3, 0x87)
        self.assertEqual(self.done, [])
        self.step(2)
        self.assertEqual(self.outcome(), ("refused", "unspecified", 3, False))

    def test_no_notice_after_it_was_sent_before(self):
        self.publish(1)
        self.connect()
        self.sender.disconnected()
        self.connect()
        first = self.message(1)
        self.ack(1, 0x87)
        self.step(2)
        self.step(2)
        self.assertEqual(self.message(2), first)
        self.refuse(2, "replay")
        self.assertEqual(self.outcome(), ("accepted", "", 3, False))

    def test_no_notices_at_all(self):
        self.publish(1)
        self.connect(notices=False)
        for mid in (1, 2, 3):
            self.ack(mid, 0x87)
            self.step(2)
        self.assertEqual(self.outcome(), ("refused", "unspecified", 3, False))

    def test_no_notice_in_a_burst_that_was_rate_limited(self):
        """One notice comes for sixteen refusals. No message is given up for that."""
        self.publish(*range(100))
        self.connect()
        generator, tokens, last_notice, handled = random.Random(3), 0.0, -9.0, 0
        for _ in range(4000):
            if not self.store.messages:
                break
            while handled < len(self.sent):
                handled += 1
                if tokens >= 1:
                    tokens -= 1
                    self.sender.acknowledged(handled, 0, self.now)
                    continue
                self.sender.acknowledged(handled, 0x87, self.now)
                if self.now - last_notice >= 1:
                    last_notice = self.now
                    self.sender.notice(bouncer.Notice(self.id(handled), "rate_limited", 1), self.now)
            elapsed = generator.uniform(0.1, 0.5)
            tokens = min(tokens + elapsed, 3.0)  # one a second
            self.step(elapsed)
        self.assertEqual({(s.outcome, s.reason) for s in self.done}, {("accepted", "")})
        self.assertEqual(len(self.done), 100)

    def test_many_with_a_wrong_clock(self):
        """From 1970, with a notice a second, sixteen at a time."""
        self.system = 0.0
        self.publish(*range(50))
        self.connect()
        true_time = lambda: 1_700_000_000 + self.now  # noqa: E731
        last_notice, handled = -9.0, 0
        for _ in range(1000):
            if not self.store.messages:
                break
            while handled < len(self.sent):
                handled += 1
                if abs(json.loads(self.message(handled))["timestamp"] - true_time()) <= 300:
                    self.sender.acknowledged(handled, 0, self.now)
                    continue
                self.sender.acknowledged(handled, 0x87, self.now)
                if self.now - last_notice >= 1:
                    last_notice = self.now
                    self.sender.notice(bouncer.Notice(self.id(handled), "stale", int(true_time())), self.now)
            self.step(0.5)
        self.assertEqual({(s.outcome, s.reason, s.row.may_be_repeated) for s in self.done}, {("accepted", "", 0)})
        self.assertEqual(len(self.done), 50)


class SigningTrouble(Bench):
    def test_a_function_that_fails(self):
        broken = [True, True]

        def sign(data):
            if broken:
                broken.pop()
                raise OSError("busy")
            return bytes(64)

        self.credential = bouncer.CallableCredential(bouncer.ED25519, sign)
        self.begin()
        self.publish(1)
        for pause in (1, 2):
            with self.assertRaises(bouncer.SigningFailed):
                self.connect()
            self.step()
            self.assertEqual((self.sent, self.following), ([], self.now + pause))
            self.now += pause
        self.step()
        self.assertEqual(len(self.sent), 1)
        self.ack(1)
        self.assertEqual(self.outcome(), ("accepted", "", 1, False))

    def test_what_cannot_be_signed(self):
        self.options = {"max_bytes": 300}
        self.begin()
        self.publish('"' + "x" * 300 + '"')
        self.connect()
        self.assertEqual(self.outcome(), ("refused", "too_large", 0, False))

    def test_no_topic_for_answers(self):
        self.sender._topics = ("data", None)
        self.store.answer(b"k" * 16, b"1")
        self.sender.added()
        self.connect()
        self.assertEqual(self.outcome(), ("refused", "no_topic", 0, False))


class AnyOrder(Bench):
    def test_every_message_has_one_outcome(self):
        """Random answers, losses of the connection and crashes: each message leaves the outbox once, and none is lost."""
        generator = random.Random(4)
        for _ in range(15):
            numbers = set(self.publish(*range(40)))
            seen, connected = set(), False
            for _ in range(4000):
                if not self.store.messages:
                    break
                if not connected:
                    self.connect()
                    connected = True
                mids = list(self.sender._by_mid)
                action = generator.randrange(20)
                if action == 0:
                    self.sender.disconnected()
                    connected = False
                elif action == 1:
                    self.begin()
                    connected = False
                elif mids:
                    mid = generator.choice(mids)
                    self.ack(mid, generator.choice((0, 0, 0x10, 0x87, 0x87, 0x97)))
                    if generator.randrange(2):
                        self.notice(mid, generator.choice(("stale", "replay", "rate_limited", "bad_signature", "internal")))
                self.step(generator.choice((0, 0, 1, 2, 5, 60)))
                for settled in self.done:
                    self.assertNotIn(settled.row.number, seen)
                    seen.add(settled.row.number)
                self.done = []
                self.assertLessEqual(len(self.sender._by_mid), 16)
            self.assertEqual(seen, numbers)
            self.sender.disconnected()
