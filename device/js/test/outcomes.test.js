// What becomes of a message: the table of device/README.md, "Outcomes", and "Sending again".
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { Connection } from '../node/connection.js';
import { temporary, until } from './support/broker.js';
import { Fake, fakeDevice } from './support/fake.js';

const pick = ({ outcome, reason, sent, mayBeRepeated }) => [outcome, reason, sent, mayBeRepeated];

async function started(t, options) {
  const made = await fakeDevice(t, await temporary(t), options);
  made.device.start();
  return made;
}

/** Publishes one message with a fake whose answers are given in turn: a code, or a reason that comes as a notice. */
async function outcomeOf(t, answers, options = {}) {
  const { device, fake } = await started(t, options);
  let n = 0;
  fake.answer = (message, acknowledge) => {
    const answer = answers[Math.min(n++, answers.length - 1)];
    if (answer === 'lost') fake.client.drop();
    else if (typeof answer === 'number') acknowledge(answer);
    else fake.refuse(message, acknowledge, answer, options.serverTime);
  };
  const delivery = await device.publish({ x: 1 });
  const outcome = await delivery.outcome;
  assert.equal(outcome.messageId, fake.sent.at(-1).message_id);
  assert.ok(fake.sent.every((m) => m.topic === 'device/sensor_001/data' && m.qos === 1 && m.retain === false));
  await until('the outbox is empty', () => device.pending === 0);
  return { device, fake, outcome, ids: fake.sent.map((m) => m.message_id), texts: fake.sent.map((m) => m.text) };
}

const distinct = (list) => new Set(list).size;

describe('outcomes', { concurrency: true }, () => {
  test('accepted', async (t) => {
    assert.deepEqual(pick((await outcomeOf(t, [0])).outcome), ['accepted', '', 1, false]);
    assert.deepEqual(pick((await outcomeOf(t, [0x10])).outcome), ['accepted', '', 1, false]);
  });

  test('other codes', async (t) => {
    assert.deepEqual(pick((await outcomeOf(t, [0x97])).outcome), ['refused', 'mqtt 0x97', 1, false]);
    assert.deepEqual(pick((await outcomeOf(t, [0x80])).outcome), ['refused', 'mqtt 0x80', 1, false]);
  });

  test('a reason that is final', async (t) => {
    for (const reason of ['malformed', 'bad_signature', 'a_new_one']) {
      assert.deepEqual(pick((await outcomeOf(t, [reason])).outcome), ['refused', reason, 1, false]);
    }
  });

  test('the notice before the acknowledgement', async (t) => {
    const { device, fake } = await started(t);
    fake.answer = async (message, acknowledge) => {
      await fake.notice(message, 'malformed');
      acknowledge(0x87);
    };
    assert.deepEqual(pick(await (await device.publish(1)).outcome), ['refused', 'malformed', 1, false]);
  });

  test('a notice for another message changes nothing', async (t) => {
    const { device, fake } = await started(t);
    fake.answer = async (message, acknowledge) => {
      await fake.notice({ ...message, message_id: '550e8400-e29b-41d4-a716-446655440000' }, 'stale', 5);
      await fake.client.receive('device/sensor_001/rejected', 'no notice');
      acknowledge(0);
    };
    const before = device.time();
    assert.deepEqual(pick(await (await device.publish(1)).outcome), ['accepted', '', 1, false]);
    assert.ok(device.time() >= before);
  });

  test('stale: the clock is corrected, and the message signed again', async (t) => {
    const directory = await temporary(t);
    const { device, fake } = await fakeDevice(t, directory, { now: () => 5 });
    fake.answer = (m, acknowledge) => (m.timestamp < 1000 ? fake.refuse(m, acknowledge, 'stale', 1_700_000_000) : acknowledge(0));
    device.start();
    const outcome = await (await device.publish(1)).outcome;
    assert.deepEqual(pick(outcome), ['accepted', '', 2, false]);
    assert.deepEqual(fake.sent.map((m) => m.timestamp), [5, 1_700_000_000]);
    assert.equal(distinct(fake.sent.map((m) => m.message_id)), 2);
    assert.equal(device.time(), 1_700_000_000);
    await device.close();
    const { device: later } = await fakeDevice(t, directory, { now: () => 6 });
    assert.equal(later.time(), 1_700_000_001); // kept over a restart
  });

  test('future, in upper case, and three times', async (t) => {
    const { outcome, ids } = await outcomeOf(t, ['future']);
    assert.deepEqual(pick(outcome), ['refused', 'future', 3, false]);
    assert.equal(distinct(ids), 3);
    const { device, fake } = await started(t);
    fake.answer = (m, acknowledge) => fake.refuse({ ...m, message_id: m.message_id.toUpperCase() }, acknowledge, 'malformed');
    assert.deepEqual(pick(await (await device.publish(1)).outcome), ['refused', 'malformed', 1, false]);
  });

  test('lost, then accepted: the same bytes', async (t) => {
    const { outcome, texts } = await outcomeOf(t, ['lost', 0]);
    assert.deepEqual(pick(outcome), ['accepted', '', 2, false]);
    assert.equal(distinct(texts), 1);
  });

  test('a notice with a time that no message can have ends nothing', async (t) => {
    for (const wrong of [Number.MAX_SAFE_INTEGER, 0]) {
      let system = 1_700_000_000;
      const { device, fake } = await started(t, { now: () => system });
      const answers = [['stale', wrong], ['future', 1_700_000_100], null];
      fake.answer = (m, acknowledge) => {
        system += 100; // the clock goes on, past what the time can be
        const [reason, serverTime] = answers.shift() ?? [null];
        if (reason === null) acknowledge(0);
        else fake.refuse(m, acknowledge, reason, serverTime);
      };
      assert.deepEqual(pick(await (await device.publish(1)).outcome), ['accepted', '', 3, false]);
      assert.deepEqual(device.errors, []);
    }
  });

  test('a broker that does not answer a subscription', async () => {
    const fake = new Fake();
    const connect = fake.connect.bind(fake);
    fake.connect = (options) => Object.assign(connect(options), { subscribe() {} });
    const error = await new Promise((closed, reject) => {
      const handlers = { closed, ready: () => reject(new Error('ready')) };
      new Connection(fake, { host: 'localhost', port: 1 }, { keepalive: 30, topics: ['a'], subscribeWait: 50, handlers });
    });
    assert.match(error.message, /subscription/);
  });

  test('lost, then stale: may be repeated, or unknown by the setting', async (t) => {
    const { outcome, ids } = await outcomeOf(t, ['lost', 'stale', 0]);
    assert.deepEqual(pick(outcome), ['accepted', '', 3, true]);
    assert.equal(ids[0], ids[1]);
    assert.notEqual(ids[1], ids[2]);
    const other = await outcomeOf(t, ['lost', 'stale'], { whenUncertain: 'unknown' });
    assert.deepEqual(pick(other.outcome), ['unknown', 'stale', 2, true]);
  });

  test('replay: accepted if it was sent before, refused otherwise', async (t) => {
    assert.deepEqual(pick((await outcomeOf(t, ['lost', 'replay'])).outcome), ['accepted', '', 2, false]);
    assert.deepEqual(pick((await outcomeOf(t, ['replay'])).outcome), ['refused', 'replay', 1, false]);
  });

  test('too old for the same bytes: signed again, or unknown by the setting', async (t) => {
    for (const [whenUncertain, expected] of [['repeat', ['accepted', '', 2, true]], ['unknown', ['unknown', '', 1, false]]]) {
      let now = 1_700_000_000;
      const { device, fake } = await started(t, { now: () => now, whenUncertain });
      fake.answer = () => {
        now += 271;
        fake.answer = (m, acknowledge) => acknowledge(0);
        fake.client.drop();
      };
      assert.deepEqual(pick(await (await device.publish(1)).outcome), expected);
      assert.equal(distinct(fake.sent.map((m) => m.text)), expected[2]);
    }
  });

  test('270 seconds are not too old', async (t) => {
    let now = 1_700_000_000;
    const { device, fake } = await started(t, { now: () => now });
    fake.answer = () => {
      now += 270;
      fake.answer = (m, acknowledge) => acknowledge(0);
      fake.client.drop();
    };
    assert.deepEqual(pick(await (await device.publish(1)).outcome), ['accepted', '', 2, false]);
    assert.equal(distinct(fake.sent.map((m) => m.text)), 1);
  });

  test('the tolerance of the bundle, unless set', async (t) => {
    for (const [inBundle, option, copies] of [[600, undefined, 1], [undefined, 600, 1], [600, 300, 2], [0, undefined, 2], [20, undefined, 2]]) {
      let now = 1_700_000_000;
      const { device, fake } = await fakeDevice(t, await temporary(t), { now: () => now, tolerance: option, change: { tolerance: inBundle } });
      device.start();
      fake.answer = () => {
        now += 500;
        fake.answer = (m, acknowledge) => acknowledge(0);
        fake.client.drop();
      };
      assert.deepEqual(pick(await (await device.publish(1)).outcome), ['accepted', '', 2, copies === 2]);
      assert.equal(distinct(fake.sent.map((m) => m.text)), copies);
    }
  });

  for (const reason of ['rate_limited', 'overloaded', 'internal']) {
    test(`${reason}: the same bytes after 1 s and 2 s, and nothing else meanwhile`, async (t) => {
      const { device, fake } = await started(t);
      let n = 0;
      fake.answer = (m, acknowledge) => (n++ < 2 ? fake.refuse(m, acknowledge, reason) : acknowledge(0));
      const first = await device.publish('first');
      await until('it is sent', () => fake.sent.length === 1);
      const second = await device.publish('second');
      assert.deepEqual(pick(await first.outcome), ['accepted', '', 3, false]);
      assert.deepEqual(pick(await second.outcome), ['accepted', '', 1, false]);
      assert.deepEqual(fake.sent.map((m) => m.payload), ['first', 'first', 'first', 'second']);
      assert.equal(distinct(fake.sent.slice(0, 3).map((m) => m.text)), 1);
      const [a, b, c] = fake.sent.map((m) => m.at);
      assert.ok(b - a > 950 && b - a < 10_000, `${b - a}`);
      assert.ok(c - b > 1950 && c - b < 10_000, `${c - b}`);
    });
  }

  test('several refused at once: one message is tried, then all', async (t) => {
    const { device, fake } = await started(t);
    fake.answer = (m, acknowledge) => (fake.sent.length <= 5 ? fake.refuse(m, acknowledge, 'rate_limited') : acknowledge(0));
    const five = await Promise.all([1, 2, 3, 4, 5].map((x) => device.publish(x)));
    const outcomes = await Promise.all(five.map((d) => d.outcome));
    assert.deepEqual(outcomes.map(pick), Array(5).fill(['accepted', '', 2, false]));
    assert.deepEqual(fake.sent.map((m) => m.payload), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);
    assert.ok(fake.sent[9].at - fake.sent[0].at < 10_000); // doubled five times it would be 31 s
  });

  test('a burst at a gateway that takes one message every 3 s, and tells of one refusal in that time: none is refused for good', async (t) => {
    const { device, fake } = await started(t);
    let taken = -Infinity;
    let told = -Infinity;
    fake.answer = (m, acknowledge) => {
      const now = performance.now();
      if (now - taken >= 3000) {
        taken = now;
        return acknowledge(0);
      }
      if (now - told < 3000) return acknowledge(0x87);
      told = now;
      return fake.refuse(m, acknowledge, 'rate_limited');
    };
    const all = await Promise.all([1, 2, 3, 4, 5, 6].map((x) => device.publish(x)));
    const outcomes = await Promise.all(all.map((d) => d.outcome));
    assert.deepEqual(outcomes.map((o) => o.outcome), Array(6).fill('accepted'));
    assert.ok(Math.max(...outcomes.map((o) => o.sent)) > 3, 'no message was refused three times');
  });

  test('no notice: signed again after 2 s, and refused after the third time', async (t) => {
    const { outcome, ids, fake } = await outcomeOf(t, [0x87]);
    assert.deepEqual(pick(outcome), ['refused', 'unspecified', 3, false]);
    assert.equal(distinct(ids), 3);
    assert.ok(fake.sent[1].at - fake.sent[0].at > 3900); // 2 s for the notice, and 2 s
  });

  test('no notice for what was sent before: the same bytes', async (t) => {
    const { outcome, texts } = await outcomeOf(t, ['lost', 0x87, 0]);
    assert.deepEqual(pick(outcome), ['accepted', '', 3, false]);
    assert.equal(distinct(texts), 1);
  });

  test('a notice that comes late counts', async (t) => {
    const { device, fake } = await started(t);
    fake.answer = async (m, acknowledge) => {
      acknowledge(0x87);
      await sleep(2500);
      await fake.notice(m, 'malformed');
    };
    assert.deepEqual(pick(await (await device.publish(1)).outcome), ['refused', 'malformed', 1, false]);
    assert.equal(fake.sent.length, 1);
  });

  test('16 at a time, in order, fewer if the broker says so', async (t) => {
    for (const [connack, most] of [[{}, 16], [{ receiveMaximum: 3 }, 3], [{ receiveMaximum: 100 }, 16]]) {
      const fake = new Fake();
      fake.connack = connack;
      const { device } = await started(t, { mqtt: fake });
      const open = [];
      let highest = 0;
      fake.answer = (m, acknowledge) => { open.push(acknowledge); highest = Math.max(highest, open.length); };
      const deliveries = await Promise.all([...Array(40).keys()].map((i) => device.publish(i)));
      while (fake.sent.length < 40 || open.length > 0) {
        await until('the window is used', () => open.length === Math.min(most, 40 - fake.sent.length + open.length));
        open.shift()(0);
      }
      await Promise.all(deliveries.map((d) => d.outcome));
      assert.equal(highest, most);
      assert.deepEqual(fake.sent.map((m) => m.payload), [...Array(40).keys()]);
    }
  });

  test('a message that is larger than the broker takes', async (t) => {
    const fake = new Fake();
    fake.connack = { maximumPacketSize: 1000 };
    const { device } = await started(t, { mqtt: fake });
    assert.deepEqual(pick(await (await device.publish('x'.repeat(900))).outcome), ['refused', 'mqtt 0x95', 0, false]);
    assert.deepEqual(pick(await (await device.publish('x')).outcome), ['accepted', '', 1, false]);
  });

  test('it subscribes before it publishes; a refused subscription is reported', async (t) => {
    const fake = new Fake();
    fake.refuseTopics = ['device/sensor_001/command'];
    const { device } = await started(t, { mqtt: fake });
    assert.deepEqual(pick(await (await device.publish(1)).outcome), ['accepted', '', 1, false]);
    assert.deepEqual(fake.events, [
      'subscribe device/sensor_001/rejected 1', 'subscribe device/sensor_001/command 1', 'subscribe device/sensor_001/response 1',
      'publish device/sensor_001/data',
    ]);
    assert.deepEqual(device.errors.map((e) => e.message), ['subscription: the broker refuses device/sensor_001/command: 0x87']);
  });

  test('how it connects', async (t) => {
    const { device, fake } = await started(t);
    await (await device.publish(1)).outcome;
    const o = fake.client.options;
    assert.deepEqual([o.protocol, o.protocolVersion, o.clientId, o.clean, o.properties.sessionExpiryInterval, o.keepalive, o.reconnectPeriod, o.rejectUnauthorized, o.ca],
      ['mqtts', 5, 'sensor_001', false, 3600, 30, 0, true, 'x']);
    assert.equal(o.checkServerIdentity, undefined);
  });

  test('after a failure it waits 1 s, then 2 s, each less up to a half', async (t) => {
    const fake = new Fake();
    fake.refuseConnections = true;
    const times = [];
    const { connect } = fake;
    fake.connect = (options) => { times.push(performance.now()); return connect.call(fake, options); };
    const { device } = await started(t, { mqtt: fake });
    await until('three attempts', () => times.length === 3);
    fake.refuseConnections = false;
    assert.ok(times[1] - times[0] > 490 && times[1] - times[0] < 10_000, `${times}`);
    assert.ok(times[2] - times[1] > 990 && times[2] - times[1] < 10_000, `${times}`);
    assert.ok(device.errors.every((e) => e.reason === 'connection' && /Not authorized/.test(e.message)));
  });

  test('closing while a notice is waited for: no outcome, and the message stays', async (t) => {
    const directory = await temporary(t);
    const { device, fake } = await fakeDevice(t, directory);
    device.start();
    fake.answer = (m, acknowledge) => acknowledge(0x87);
    device.on('outcome', () => assert.fail('an outcome after close'));
    const delivery = await device.publish(1);
    await until('it is sent', () => fake.sent.length === 1);
    await device.close();
    await assert.rejects(delivery.outcome, { reason: 'closed' });
    await sleep(2200);
    const { device: later } = await fakeDevice(t, directory);
    assert.equal(later.pending, 1);
  });

  test('a mistake in a listener does not stop the Device', async (t) => {
    const { device } = await started(t);
    // The test runner has listeners of its own.
    const others = process.listeners('uncaughtException');
    process.removeAllListeners('uncaughtException');
    const thrown = new Promise((resolve) => process.once('uncaughtException', resolve));
    device.once('outcome', () => { throw new Error('in the listener'); });
    await (await device.publish(1)).outcome;
    assert.equal((await thrown).message, 'in the listener');
    for (const listener of others) process.on('uncaughtException', listener);
    assert.deepEqual(pick(await (await device.publish(2)).outcome), ['accepted', '', 1, false]);
  });
});
