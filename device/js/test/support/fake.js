// A stand-in for mqtt.js and the gateway behind it, for what a real broker does not do on demand. It calls back as mqtt.js 4.3 does: twice for
// a refused message.
import { EventEmitter } from 'node:events';
import { mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { Device } from '../../node/index.js';
import { deviceJSON } from './broker.js';

class Client extends EventEmitter {
  connected = false;
  outgoing = {};

  constructor(fake, options) {
    super();
    this.fake = fake;
    this.options = options;
    this.on('error', () => {});
    setImmediate(() => {
      if (fake.refuseConnections) {
        this.emit('error', Object.assign(new Error('Connection refused: Not authorized'), { code: 135 }));
        return;
      }
      this.connected = true;
      this.emit('connect', { properties: fake.connack });
    });
  }

  subscribe(topic, options, callback) {
    this.fake.events.push(`subscribe ${topic} ${options.qos}`);
    const qos = this.fake.refuseTopics.includes(topic) ? 0x87 : options.qos;
    setImmediate(() => callback(null, [{ topic, qos }]));
  }

  publish(topic, payload, options, callback) {
    const bytes = Buffer.from(payload);
    const message = { topic, qos: options.qos, retain: options.retain, text: bytes.toString(), at: performance.now(), client: this, ...JSON.parse(bytes) };
    this.fake.sent.push(message);
    this.fake.events.push(`publish ${topic}`);
    setImmediate(() => {
      if (this.connected) this.fake.answer(message, (code) => this.acknowledge(code, callback));
    });
  }

  acknowledge(code, callback) {
    if (code > 0 && code !== 16) callback(Object.assign(new Error('Publish error'), { code }), {});
    callback(null, {});
  }

  /** A message from the broker; resolves when it is acknowledged. */
  receive(topic, text) {
    return new Promise((resolve) => this.handleMessage({ topic, payload: Buffer.from(text), qos: 1 }, resolve));
  }

  drop() {
    this.connected = false;
    this.emit('close');
  }

  end(force, callback) {
    this.connected = false;
    setImmediate(() => { this.emit('close'); callback?.(); });
  }
}

export class Fake {
  clients = [];
  sent = [];
  events = [];
  connack = {};
  refuseConnections = false;
  refuseTopics = [];
  /** What the gateway does with a message: answer(message, acknowledge). */
  answer = (message, acknowledge) => acknowledge(0);

  connect(options) {
    const client = new Client(this, options);
    this.clients.push(client);
    return client;
  }

  get client() { return this.clients.at(-1); }

  notice(message, reason, serverTime = Math.floor(Date.now() / 1000)) {
    return this.client.receive(`device/${message.device_id}/rejected`, JSON.stringify({
      message_id: message.message_id, reason, server_time: serverTime,
    }));
  }

  /** Refuses with a notice, which comes after the acknowledgement. */
  refuse(message, acknowledge, reason, serverTime) {
    acknowledge(0x87);
    return this.notice(message, reason, serverTime);
  }
}

/** A bundle whose certificate is never read. */
export async function fakeBundle(directory, change = {}) {
  await mkdir(directory, { recursive: true });
  const files = { 'ca.crt': 'x', 'device.crt': 'x', 'device.key': 'x', secret: 'supersecretkey123\n' };
  for (const [name, text] of Object.entries(files)) await writeFile(path.join(directory, name), text);
  await writeFile(path.join(directory, 'device.json'), JSON.stringify({ ...deviceJSON('sensor_001', 8883), ...change }));
  return directory;
}

/** A Device on a fake, closed after the test. */
export async function fakeDevice(t, directory, options = {}) {
  const fake = options.mqtt ?? new Fake();
  const device = await Device.fromBundle(await fakeBundle(directory, options.change), { closeTimeout: 100, ...options, mqtt: fake });
  device.errors = [];
  device.on('error', (error) => device.errors.push(error));
  t.after(() => device.close());
  return { device, fake };
}
