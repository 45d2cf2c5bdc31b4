// The agent of test/devices/doc.go: one Device, controlled by lines of JSON. Usage: node agent.js BUNDLE STATE
// mqtt.js is looked for in the directories of NODE_PATH, and where Debian has it.
import { createInterface } from 'node:readline';
import fs from 'node:fs';
import { Device, rawJSON } from './node/index.js';
import { loadMQTT } from './test/support/mqtt.js';

// Written at once: a pipe of process.stdout is asynchronous, and "die" ends the process.
const print = (event) => printLine(JSON.stringify(event));
const printLine = (text) => {
  const line = Buffer.from(`${text}\n`);
  for (let at = 0; at < line.length;) {
    try {
      at += fs.writeSync(1, line, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
};

const [bundle, state] = process.argv.slice(2);
if (state === undefined) {
  process.stderr.write('usage: node agent.js BUNDLE STATE\n');
  process.exit(2);
}

let offset = 0;
const device = await Device.fromBundle(bundle, { mqtt: loadMQTT(), state, now: () => Date.now() / 1000 + offset });
let action = 'answer', n = 0;

device.on('connected', () => print({ event: 'connected' }));
device.on('disconnected', () => print({ event: 'disconnected' }));
device.on('outcome', (o) => print({
  event: 'outcome', delivery: o.delivery, outcome: o.outcome, reason: o.reason, message_id: o.messageId ?? '', sent: o.sent,
  may_be_repeated: o.mayBeRepeated,
}));
device.on('response', (text) => print({ event: 'response', text }));
device.on('commandRefused', ({ reason }) => print({ event: 'command_refused', reason }));
device.on('error', (error) => print({ event: 'error', error: String(error?.message ?? error) }));
device.onCommand = (command) => {
  // Its text, so that numbers stay as they are; a newline in it is white space between tokens.
  printLine(`{"event":"command","id":"${command.id}","command":${command.text.replace(/[\r\n]/g, ' ')}}`);
  if (action === 'die') process.kill(process.pid, 'SIGKILL');
  if (action === 'fail') throw new Error('broken');
  return { status: 'succeeded', result: { n: ++n } };
};

/** Exactly the bytes after "payload": of a line whose last member that is. */
function payloadOf(line) {
  const at = line.indexOf('"payload":');
  return line.slice(at + '"payload":'.length, line.lastIndexOf('}'));
}

async function publish(line, { tag }) {
  try {
    const delivery = await device.publish(rawJSON(payloadOf(line)));
    print({ event: 'queued', tag, delivery: delivery.id });
  } catch (error) {
    print({ event: 'not_queued', tag, error: String(error?.reason ?? error) });
  }
}

function tagOf(line) {
  // The payload may be no JSON, so the line may be none either: what is before it is.
  const at = line.indexOf('"payload":');
  return JSON.parse(at < 0 ? line : `${line.slice(0, at).replace(/,\s*$/, '')}}`);
}

print({ event: 'ready' });
for await (const line of createInterface({ input: process.stdin })) {
  if (line.trim() === '') continue;
  const order = tagOf(line);
  if (order.op === 'stop') break;
  if (order.op === 'start') device.start();
  else if (order.op === 'clock') offset = order.offset;
  else if (order.op === 'on_command') action = order.do;
  else if (order.op === 'publish') publish(line, order);
  else throw new Error(`unknown "op": ${order.op}`);
}
await device.close();
process.exit(0);
