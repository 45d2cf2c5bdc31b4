// Runs the vectors of device/vectors/device-v1.json on the core. It needs WebCrypto and TextEncoder only: the tests run it in Node, in
// a context without Node's modules, and in a browser.

/** The credential of an element of "devices" in device/vectors/device-v1.json. */
export async function credentialOf(api, device) {
  if (device.algorithm === 'HMAC-SHA256') return api.hmacCredential(device.secrets);
  const make = device.algorithm === 'Ed25519' ? api.ed25519Credential : api.p256Credential;
  return make({ privateKey: device.private_key, commandKeys: device.command_keys });
}

/** Whether a message is good for the gateway, as sent: good, malformed or bad_signature. */
export async function verifyMessage(api, device, credential, message) {
  let e;
  try {
    e = api.decode(message);
  } catch (error) {
    if (error.reason === 'malformed') return 'malformed';
    throw error;
  }
  // A shared secret verifies commands and messages alike.
  const verify = device.public_key ? await api.messageVerifier(device.public_key) : (s, b) => credential.verifyCommand(s, b);
  return (await verify(e.signature, e.signed)) ? 'good' : 'bad_signature';
}

/** The bytes of a text of the vectors. */
export function bytesOfText({ text, hex, long }) {
  if (hex !== undefined) return Uint8Array.from(hex.match(/../g) ?? [], (b) => parseInt(b, 16));
  if (long !== undefined) text = long.before + 'x'.repeat(long.x_times) + long.after;
  return new TextEncoder().encode(text);
}

const textOf = (bytes) => new TextDecoder().decode(bytes);

async function reasonOf(work) {
  try {
    return { value: await work() };
  } catch (error) {
    if (error.reason === undefined) throw error;
    return { reason: error.reason };
  }
}

/** Runs all vectors. Returns {count, failures}: how many were run in each group, and a line for each that failed. */
export async function runVectors(api, doc) {
  const failures = [];
  const count = { sign: 0, messages: 0, commands: 0, memory: 0, answers: 0, notices: 0 };
  const expect = (group, name, got, want) => {
    if (got !== want) failures.push(`${group}: ${name}: ${got}, not ${want}`.slice(0, 500));
  };
  const devices = new Map();
  for (const d of doc.devices) devices.set(d.device_id, { device: d, credential: await credentialOf(api, d) });
  const of = (id) => devices.get(id) ?? { device: { ...doc.devices[0] }, credential: devices.get(doc.devices[0].device_id).credential };

  for (const v of doc.sign) {
    count.sign++;
    const { device, credential } = of(v.device);
    const { value, reason } = await reasonOf(() => api.sign({
      credential, deviceId: v.device, timestamp: v.timestamp, messageId: v.message_id, payload: api.rawJSON(bytesOfText(v.payload)),
    }));
    expect('sign', v.name, reason, v.error);
    if (v.error !== undefined || value === undefined) continue;
    if (v.message) expect('sign', v.name, textOf(value), textOf(bytesOfText(v.message)));
    expect('sign', v.name, await verifyMessage(api, device, credential, value), 'good');
  }
  for (const v of doc.messages) {
    count.messages++;
    const { device, credential } = of(v.device);
    expect('messages', v.name, await verifyMessage(api, device, credential, bytesOfText(v.message)), v.expect);
  }
  for (const v of doc.commands) {
    count.commands++;
    const { credential } = of(v.device);
    const { value, reason = 'good' } = await reasonOf(() => api.verifyCommand({
      credential, deviceId: v.device, message: bytesOfText(v.message), now: v.now,
    }));
    expect('commands', v.name, reason, v.expect);
    if (v.expect !== 'good' || value === undefined) continue;
    expect('commands', `${v.name}: id`, value.id, v.id);
    expect('commands', `${v.name}: expires`, value.expires, v.expires);
    expect('commands', `${v.name}: command`, value.text, textOf(bytesOfText(v.command)));
    expect('commands', `${v.name}: value`, JSON.stringify(value.value), JSON.stringify(JSON.parse(value.text)));
  }
  for (const v of doc.memory) {
    count.memory++;
    let memory = new api.CommandMemory(v.capacity);
    for (const [i, step] of v.steps.entries()) {
      expect('memory', `${v.name}: step ${i}: peek`, memory.peek(step.id, step.expires), step.expect);
      expect('memory', `${v.name}: step ${i}`, memory.check(step.id, step.expires), step.expect);
      memory = api.CommandMemory.fromJSON(JSON.parse(JSON.stringify(memory)), v.capacity); // a restart
    }
  }
  for (const v of doc.answers) {
    count.answers++;
    const result = v.result ? api.rawJSON(bytesOfText(v.result)) : undefined;
    expect('answers', v.payload.text, textOf(api.answer(v.command_id, v.status, result)), textOf(bytesOfText(v.payload)));
  }
  for (const v of doc.notices) {
    count.notices++;
    const n = api.readNotice(bytesOfText(v.message));
    expect('notices', v.name, n !== null, v.good);
    if (!v.good || n === null) continue;
    expect('notices', `${v.name}: message_id`, n.messageId, v.message_id ?? null);
    expect('notices', `${v.name}: reason`, n.reason, v.reason);
    expect('notices', `${v.name}: server_time`, n.serverTime, v.server_time);
  }
  return { count, failures };
}
