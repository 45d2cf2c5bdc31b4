// The program of the cross-check: test/devices/doc.go describes its protocol. Each line of the standard input is answered with one.
import { createInterface } from 'node:readline';
import * as core from './src/index.node.js';
import { credentialOf, verifyMessage } from './test/support/vectors.js';

const encoder = new TextEncoder();

async function answer(q) {
  const credential = await credentialOf(core, q.device);
  const deviceId = q.device.device_id;
  switch (q.do) {
    case 'sign':
      try {
        const message = await core.sign({
          credential, deviceId, timestamp: q.timestamp, messageId: q.message_id, payload: core.rawJSON(q.payload),
        });
        return { message: new TextDecoder().decode(message) };
      } catch (error) {
        if (error.reason === undefined) throw error;
        return { error: error.reason };
      }
    case 'verify':
      return { result: await verifyMessage(core, q.device, credential, encoder.encode(q.message)) };
    case 'command':
      try {
        const c = await core.verifyCommand({ credential, deviceId, message: encoder.encode(q.message), now: q.now });
        return { result: 'good', id: c.id, command: c.text, expires: c.expires };
      } catch (error) {
        if (error.reason === undefined) throw error;
        return { result: error.reason };
      }
    default:
      throw new Error(`unknown "do": ${q.do}`);
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line)))}\n`);
}
