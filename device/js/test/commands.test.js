// Commands: verified, remembered over restarts, executed once, answered.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { describe, test } from 'node:test';
import { promisify } from 'node:util';
import { hmacCredential, rawJSON } from '../node/index.js';
import { temporary, until } from './support/broker.js';
import { Fake, fakeDevice } from './support/fake.js';

const credential = await hmacCredential('supersecretkey123');
const later = Math.floor(Date.now() / 1000) + 3600;
const idOf = (n) => `01923456-789a-8bcd-8def-${String(n).padStart(12, '0')}`;
const TOPIC = 'device/sensor_001/command';

async function commandText(n, { text = '{"set":"x"}', expires = later, deviceId = 'sensor_001', signer = credential } = {}) {
  const payload = `{"command":${text},"expires":${expires}}`;
  const signature = Buffer.from(await signer.sign(new TextEncoder().encode(`${deviceId}1727712000${idOf(n)}${payload}`))).toString('hex');
  return `{"device_id":"${deviceId}","timestamp":1727712000,"message_id":"${idOf(n)}","payload":${payload},"signature":"${signature}"}`;
}

async function started(t, directory, options) {
  const made = await fakeDevice(t, directory, options);
  made.refused = [];
  made.device.on('commandRefused', ({ reason }) => made.refused.push(reason));
  made.device.start();
  await once(made.device, 'connected');
  made.answers = () => made.fake.sent.filter((m) => m.topic === `${TOPIC}/result`).map((m) => m.payload);
  made.give = async (n, how) => made.fake.client.receive(TOPIC, await commandText(n, how));
  return made;
}

describe('commands', { concurrency: true }, () => {
  test('what a handler returns is the answer', async (t) => {
    const d = await started(t, await temporary(t));
    const results = [
      [() => ({ status: 'succeeded' }), { status: 'succeeded' }],
      [async () => ({ status: 'rejected', result: null }), { status: 'rejected', result: null }],
      [() => ({ status: 'failed', result: rawJSON('[1]') }), { status: 'failed', result: [1] }],
      [() => ({ status: 'done', result: 5 }), { status: 'failed', result: 5 }],
      [() => undefined, { status: 'failed' }],
      [() => { throw new Error('broken'); }, { status: 'failed', result: 'broken' }],
      [async () => { throw 'text \ud800'; }, { status: 'failed', result: 'text \ufffd' }],
      [() => ({ status: 'succeeded', result: NaN }), { status: 'failed', result: 'payload: NaN is not JSON' }],
      [null, { status: 'rejected' }],
    ];
    for (const [i, [handler, expected]] of results.entries()) {
      d.device.onCommand = handler;
      await d.give(i);
      await until(`answer ${i}`, () => d.answers().length === i + 1);
      assert.deepEqual(d.answers()[i], { command_id: idOf(i), ...expected });
    }
    d.device.onCommand = () => ({ status: 'succeeded', result: 'x'.repeat(65536) });
    await d.give(100);
    await until('an answer', () => d.answers().length === results.length + 1);
    assert.equal(d.answers().at(-1).status, 'failed');
    assert.match(d.answers().at(-1).result, /^too_large/);
    assert.ok(d.fake.sent.every((m) => m.text.length <= 65536));
  });

  test('the largest answer fits', async (t) => {
    const d = await started(t, await temporary(t));
    const frame = 65536 - JSON.stringify({
      device_id: 'sensor_001', timestamp: 1727712000, message_id: idOf(1), payload: { command_id: idOf(1), status: 'succeeded', result: '' }, signature: 'x'.repeat(64),
    }).length;
    for (const [n, length, status] of [[1, frame, 'succeeded'], [2, frame + 1, 'failed']]) {
      d.device.onCommand = () => ({ status: 'succeeded', result: 'x'.repeat(length) });
      await d.give(n);
      await until('the answer', () => d.answers().length === n);
      assert.equal(d.answers()[n - 1].status, status);
    }
    assert.equal(d.fake.sent[0].text.length, 65536);
  });

  test('an error longer than a message is answered without its text', async (t) => {
    const d = await started(t, await temporary(t), { maxMessageBytes: 512 });
    d.device.onCommand = () => ({ status: 'succeeded', result: { ['x'.repeat(1000)]: () => {} } }); // the error names the key
    await d.give(1);
    await until('the answer', () => d.answers().length === 1);
    assert.deepEqual(d.answers()[0], { command_id: idOf(1), status: 'failed' });
  });

  test('the log has no payload', async (t) => {
    const program = `
      import { Fake, fakeBundle } from ${JSON.stringify(new URL('./support/fake.js', import.meta.url).href)};
      import { Device } from ${JSON.stringify(new URL('../node/index.js', import.meta.url).href)};
      const fake = new Fake();
      const device = await Device.fromBundle(await fakeBundle(process.argv[1]), { mqtt: fake });
      device.onCommand = () => ({ status: 'succeeded', result: { 'payload-of-the-test': () => {} } });
      device.start();
      device.once('connected', () => fake.client.receive(${JSON.stringify(TOPIC)}, process.argv[2]));
      device.on('error', () => {});
      setInterval(async () => { if (fake.sent.length > 0) { await device.close(); process.exit(0); } }, 10);
    `;
    const { stderr } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', program, await temporary(t), await commandText(1)], {
      env: { ...process.env, NODE_DEBUG: 'mosquitto-bouncer-device' }, timeout: 60_000,
    });
    assert.match(stderr, /connected/);
    assert.ok(!/payload-of-the-test|supersecretkey/.test(stderr), stderr);
  });

  test('an answer that waits when the bundle has no commands any more', async (t) => {
    const directory = await temporary(t);
    const first = await started(t, directory);
    first.fake.answer = () => {};
    await first.give(1);
    await until('the answer', () => first.answers().length === 1);
    await first.device.close();
    const topics = { data: 'device/sensor_001/data', rejected: 'device/sensor_001/rejected' };
    const d = await started(t, directory, { change: { topics } });
    await until('it is refused', () => d.device.pending === 0);
    assert.deepEqual([d.fake.sent.length, d.device.errors.map((e) => e.reason)], [0, ['answer']]);
  });

  test('one at a time, in order; a command that waits is not taken twice', async (t) => {
    const d = await started(t, await temporary(t));
    const order = [];
    let release;
    d.device.onCommand = async (command) => {
      order.push(`begin ${command.value}`);
      if (command.value === 1) await new Promise((resolve) => { release = resolve; });
      order.push(`end ${command.value}`);
      return { status: 'succeeded' };
    };
    await d.give(1, { text: '1' });
    await d.give(2, { text: '2' });
    await d.give(2, { text: '2' });
    await d.give(1, { text: '1' });
    await until('the first begins', () => order.length > 0);
    assert.deepEqual(d.refused, ['repeated', 'repeated']);
    release();
    await until('two answers', () => d.answers().length === 2);
    assert.deepEqual(order, ['begin 1', 'end 1', 'begin 2', 'end 2']);
  });

  test('what is refused is not executed', async (t) => {
    const d = await started(t, await temporary(t));
    let calls = 0;
    d.device.onCommand = () => { calls++; return { status: 'succeeded' }; };
    await d.give(1, { expires: 1727712030 });
    await d.give(2, { deviceId: 'sensor_002' });
    await d.give(3, { signer: await hmacCredential('another') });
    await d.fake.client.receive(TOPIC, '{}');
    assert.deepEqual(d.refused, ['expired', 'foreign', 'forged', 'malformed']);
    await d.give(4);
    await until('the answer', () => d.answers().length === 1);
    assert.equal(calls, 1);
  });

  test('a command that expires while it waits is not executed', async (t) => {
    let now = 1_700_000_000, calls = 0;
    const d = await started(t, await temporary(t), { now: () => now });
    d.device.onCommand = () => { calls++; now += 100; return { status: 'succeeded' }; };
    await Promise.all([d.give(1, { expires: now + 50 }), d.give(2, { expires: now + 50 })]);
    await until('it is refused', () => d.refused.length === 1);
    assert.deepEqual([d.refused, calls], [['expired'], 1]);
  });

  test('over restarts: repeated, with the same answer', async (t) => {
    const directory = await temporary(t);
    let d = await started(t, directory);
    d.device.onCommand = () => ({ status: 'succeeded', result: 1 });
    await d.give(1);
    await until('the answer', () => d.answers().length === 1 && d.device.pending === 0);
    for (let i = 0; i < 2; i++) {
      await d.device.close();
      d = await started(t, directory);
      d.device.onCommand = () => assert.fail('executed again');
      await d.give(1);
      await until('the answer', () => d.answers().length === 1);
      assert.deepEqual(d.answers()[0], { command_id: idOf(1), status: 'succeeded', result: 1 });
      assert.deepEqual(d.refused, ['repeated']);
      assert.deepEqual(d.device.errors, []);
    }
  });

  test('the end of the process while a command is executed: interrupted', async (t) => {
    const directory = await temporary(t);
    let d = await started(t, directory);
    let release;
    d.device.onCommand = () => new Promise((resolve) => { release = resolve; });
    await d.give(1);
    await d.give(2);
    await until('it is being executed', () => release !== undefined);
    await d.device.close(); // after closeTimeout; as a crash leaves it
    release({ status: 'succeeded' });
    d = await started(t, directory);
    const executed = [];
    d.device.onCommand = (command) => { executed.push(command.id); return { status: 'succeeded' }; };
    await d.give(1);
    await d.give(2); // it waited, was not begun, and is executed
    await until('the answers', () => d.answers().length === 2);
    assert.deepEqual(d.answers(), [
      { command_id: idOf(1), status: 'failed', result: 'interrupted' }, { command_id: idOf(2), status: 'succeeded' },
    ]);
    assert.deepEqual(executed, [idOf(2)]);
    await until('the outbox is empty', () => d.device.pending === 0);
    await d.give(1);
    await until('the answer again', () => d.answers().length === 3);
    assert.deepEqual(d.answers()[2], { command_id: idOf(1), status: 'failed', result: 'interrupted' });
  });

  test('the table is bounded, and the floor is kept', async (t) => {
    const directory = await temporary(t);
    let d = await started(t, directory, { maxCommands: 2 });
    let calls = 0;
    d.device.onCommand = () => { calls++; return { status: 'succeeded' }; };
    for (let n = 1; n <= 4; n++) await d.give(n, { expires: later + n });
    await until('four answers', () => d.answers().length === 4);
    await d.device.close();
    d = await started(t, directory, { maxCommands: 2 });
    d.device.onCommand = () => { calls++; return { status: 'succeeded' }; };
    for (let n = 1; n <= 4; n++) await d.give(n, { expires: later + n });
    await until('all are refused', () => d.refused.length === 4);
    assert.deepEqual(d.refused, ['expired', 'expired', 'repeated', 'repeated']);
    assert.equal(calls, 4);
  });

  test('answers do not need room in the outbox, and are bounded', async (t) => {
    const fake = new Fake();
    fake.answer = () => {}; // no acknowledgement
    const d = await started(t, await temporary(t), { mqtt: fake, maxMessages: 1 });
    await d.device.publish('full');
    await assert.rejects(d.device.publish('more'), { reason: 'outbox_full' });
    let calls = 0;
    d.device.onCommand = () => { calls++; return { status: 'succeeded' }; };
    for (let n = 0; n < 520; n++) {
      await d.give(n);
      if (n < 256) await until('it is executed', () => calls === n + 1);
    }
    await until('the errors', () => d.device.errors.length >= 520 - 512);
    assert.equal(calls, 256);
    assert.deepEqual([...new Set(d.device.errors.map((e) => e.reason))], ['busy']);
    assert.equal(d.device.errors.length, 520 - 512);
  });
});
