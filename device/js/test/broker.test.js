// The Device on a real mosquitto without the plugin: it accepts everything, and shows what is sent.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { Device, rawJSON, sign, hmacCredential } from '../node/index.js';
import { Broker, until } from './support/broker.js';
import { loadMQTT } from './support/mqtt.js';

const mqtt = loadMQTT();
const text = (bytes) => new TextDecoder().decode(bytes);

async function subscribed(t, broker, topic) {
  const client = await broker.client(t, mqtt);
  const messages = [];
  client.on('message', (name, payload) => messages.push(text(payload)));
  await new Promise((resolve, reject) => client.subscribe(topic, { qos: 1 }, (error) => (error ? reject(error) : resolve())));
  return { client, messages };
}

test('publishes, takes commands and answers them', async (t) => {
  const broker = await Broker.make(t);
  await broker.start();
  const device = await Device.fromBundle(await broker.bundle(), { mqtt });
  t.after(() => device.close());
  const { client, messages } = await subscribed(t, broker, 'device/#');
  const commands = [];
  device.onCommand = async (command) => {
    commands.push(command);
    return { status: 'succeeded', result: rawJSON('{"seconds":30.0}') };
  };
  const connected = once(device, 'connected');
  device.start();
  await connected;

  const delivery = await device.publish({ temperature: 22.5 });
  const outcome = await delivery.outcome;
  assert.equal(outcome.outcome, 'accepted');
  assert.equal(outcome.sent, 1);
  assert.equal(outcome.mayBeRepeated, false);
  await until('the message', () => messages.length === 1);
  const envelope = JSON.parse(messages[0]);
  assert.deepEqual(envelope.payload, { temperature: 22.5 });
  assert.equal(envelope.message_id, outcome.messageId);

  const credential = await hmacCredential('supersecretkey123');
  const now = Math.floor(Date.now() / 1000);
  const payload = `{"command":{"set":1.50},"expires":${now + 60}}`;
  const command = await commandMessage(credential, 'sensor_001', now, '01923456-789a-8bcd-8def-0123456789ab', payload);
  client.publish('device/sensor_001/command', command, { qos: 1 });
  await until('the answer', () => messages.some((m) => m.includes('"command_id"')));
  const answer = messages.find((m) => m.includes('"command_id"'));
  assert.match(answer, /"payload":\{"command_id":"01923456-789a-8bcd-8def-0123456789ab","status":"succeeded","result":\{"seconds":30\.0\}\}/);
  assert.equal(commands.length, 1);
  assert.equal(commands[0].text, '{"set":1.50}');

  // Again: the same answer, and no other execution.
  await until('the answer has its acknowledgement', () => device.pending === 0);
  const refused = once(device, 'commandRefused');
  client.publish('device/sensor_001/command', command, { qos: 1 });
  assert.deepEqual(await refused, [{ reason: 'repeated' }]);
  await until('the second answer', () => messages.filter((m) => m.includes('"command_id"')).length === 2);
  assert.equal(commands.length, 1);

  const response = once(device, 'response');
  client.publish('device/sensor_001/response', 'stored \u00e9', { qos: 1 });
  assert.deepEqual(await response, ['stored \u00e9']);
});

async function commandMessage(credential, deviceId, timestamp, id, payload) {
  const signature = await credential.sign(new TextEncoder().encode(`${deviceId}${timestamp}${id}${payload}`));
  return `{"device_id":"${deviceId}","timestamp":${timestamp},"message_id":"${id}","payload":${payload},"signature":"${Buffer.from(signature).toString('hex')}"}`;
}

test('a broker that is killed: the same bytes again, once per connection, in order', async (t) => {
  const broker = await Broker.make(t);
  const directory = await broker.bundle();
  // Acknowledgements are lost: what mqtt.js calls back is kept from the Device for connections made while swallow is set.
  let swallow = true;
  const sent = [];
  const wrapped = {
    connect(options) {
      const client = mqtt.connect(options);
      const connection = [];
      const swallowed = swallow; // of the whole connection
      sent.push(connection);
      const publish = client.publish.bind(client);
      client.publish = (topic, payload, how, done) => {
        connection.push(text(payload));
        return publish(topic, payload, how, (...result) => { if (!swallowed) done(...result); });
      };
      return client;
    },
  };
  const device = await Device.fromBundle(directory, { mqtt: wrapped });
  t.after(() => device.close());
  await broker.start();
  device.start();
  const deliveries = [];
  for (let i = 0; i < 20; i++) deliveries.push(await device.publish(i));
  await until('16 messages are on their way', () => sent[0]?.length === 16);
  for (let i = 2; i <= 3; i++) {
    const disconnected = once(device, 'disconnected');
    await broker.kill();
    await disconnected;
    await broker.start();
    await until(`connection ${i}`, () => sent.at(-1).length === 16 && sent.filter((c) => c.length > 0).length === i, 20_000);
  }
  swallow = false;
  await broker.kill();
  await broker.start();
  const outcomes = await Promise.all(deliveries.map((d) => d.outcome));
  const used = sent.filter((c) => c.length > 0);
  assert.equal(used.length, 4);
  for (const connection of used.slice(1, 3)) assert.deepEqual(connection, used[0]);
  assert.deepEqual(used[3].slice(0, 16), used[0]);
  assert.equal(used[3].length, 20);
  assert.deepEqual(used[3].map((m) => JSON.parse(m).payload), [...Array(20).keys()]);
  outcomes.forEach((o, i) => {
    assert.equal(o.outcome, 'accepted');
    assert.equal(o.sent, i < 16 ? 4 : 1);
    assert.equal(o.mayBeRepeated, false);
    assert.equal(o.messageId, JSON.parse(used[3][i]).message_id);
  });
});

test('a certificate of another CA, or for another host, is refused', async (t) => {
  const broker = await Broker.make(t);
  await broker.start();
  const other = await Broker.make(t);
  const good = await broker.bundle('sensor_001');
  const elsewhere = await broker.bundle('sensor_002', { host: '127.0.0.1' });
  const untrusted = await other.bundle('sensor_003', { port: broker.port });
  for (const [directory, expected] of [[elsewhere, /IP: 127\.0\.0\.1 is not in the cert's list/], [untrusted, /certificate/]]) {
    const device = await Device.fromBundle(directory, { mqtt });
    const failed = once(device, 'error');
    device.start();
    const [error] = await failed;
    assert.equal(error.reason, 'connection');
    assert.match(error.message, expected);
    await device.close();
  }
  const device = await Device.fromBundle(good, { mqtt });
  const connected = once(device, 'connected');
  device.start();
  await connected;
  await device.close();
});

test('closing keeps what has no outcome, and another process sends it', async (t) => {
  const broker = await Broker.make(t);
  const directory = await broker.bundle();
  const first = await Device.fromBundle(directory, { mqtt });
  const delivery = await first.publish('later');
  await first.close();
  await assert.rejects(delivery.outcome, { reason: 'closed' });
  await assert.rejects(first.publish(1), { reason: 'closed' });
  await broker.start();
  const second = await Device.fromBundle(directory, { mqtt });
  t.after(() => second.close());
  assert.equal(second.pending, 1);
  const outcome = once(second, 'outcome');
  second.start();
  const [{ outcome: what, delivery: id, messageId }] = await outcome;
  assert.equal(what, 'accepted');
  assert.equal(id, delivery.id);
  assert.ok(messageId);
  await until('the outbox is empty', () => second.pending === 0);
});

test('sign in the Node package needs no more than the core', async () => {
  const credential = await hmacCredential('supersecretkey123');
  const message = await sign({ credential, deviceId: 'sensor_001', timestamp: 0, messageId: '550e8400-e29b-41d4-a716-446655440000', payload: 1 });
  assert.ok(text(message).endsWith('649b77b30983c7ceb12c6d5dc6266f66589b304dd31adb88de0adf2c1eaa5ddf"}'));
});
