// Publishes until it is killed. Prints the outbox that it found, "try N" before and "queued N" after a publish,
// "acknowledged N" when the broker has it, "done N" after an outcome.
import { State } from '../../node/state.js';
import { Device } from '../../node/index.js';
import { Fake } from './fake.js';
import fs from 'node:fs';

const [bundle, directory, first] = process.argv.slice(2);
const print = (line) => fs.writeSync(1, `${line}\n`);

const state = await State.open(directory, { deviceId: 'sensor_001', commands: 256, maxMessages: 10_000, maxBytes: 1 << 24 });
print(`outbox ${JSON.stringify([...state.entries.values()].map((e) => Number(Buffer.from(e.payload).toString())))}`);
await state.close();

const fake = new Fake();
fake.answer = (message, acknowledge) => {
  if (message.payload % 3 === 0 && Math.random() < 0.5) return;
  print(`acknowledged ${message.payload}`);
  acknowledge(0);
};
const device = await Device.fromBundle(bundle, { mqtt: fake, state: directory });
const payloads = new Map();
device.on('outcome', (o) => print(`done ${payloads.get(o.delivery) ?? JSON.stringify(fake.sent.find((m) => m.message_id === o.messageId).payload)}`));
device.start();
for (let n = Number(first); ; n++) {
  print(`try ${n}`);
  const delivery = await device.publish(n);
  payloads.set(delivery.id, n);
  print(`queued ${n}`);
  if (n % 5 === 0) fake.client.drop();
}
