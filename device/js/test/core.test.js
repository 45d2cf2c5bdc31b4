// The core: vectors, in Node and without Node, and what vectors do not show.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { generateKeyPairSync, webcrypto } from 'node:crypto';
import { readFile, readdir } from 'node:fs/promises';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import * as core from 'mosquitto-bouncer-device';
import { runVectors } from './support/vectors.js';

const run = promisify(execFile);
const file = (name) => new URL(name, import.meta.url);
const doc = JSON.parse(await readFile(file('../../vectors/device-v1.json'), 'utf8'));
const groups = ['sign', 'messages', 'commands', 'memory', 'answers', 'notices'];
const everything = Object.fromEntries(groups.map((g) => [g, doc[g].length]));

test('the vectors', async () => {
  assert.deepEqual(await runVectors(core, doc), { count: everything, failures: [] });
  assert.ok(everything.messages >= 300 && everything.sign >= 100 && everything.commands >= 200);
});

test('a vector that does not hold is reported', async () => {
  const wrong = structuredClone(doc);
  wrong.sign[0].message.text = wrong.sign[0].message.text.replace('649b', '649c');
  wrong.messages[0].expect = 'bad_signature';
  wrong.commands.find((v) => v.expect === 'good').expires++;
  wrong.memory[0].steps[0].expect = 'expired';
  wrong.answers[0].payload.text += ' ';
  wrong.notices[0].reason = 'stale';
  const { failures } = await runVectors(core, wrong);
  assert.deepEqual([...new Set(failures.map((f) => f.split(':')[0]))], groups);
});

test('the vectors in a context that has WebCrypto and the text encoders only', async () => {
  const script = fileURLToPath(file('./support/without-node.js')); // modules in a context need a flag
  const { stdout } = await run(process.execPath, ['--experimental-vm-modules', '--no-warnings', script]);
  assert.deepEqual(JSON.parse(stdout), { globals: 'undefined undefined undefined undefined', count: everything, failures: [] });
});

test('the core imports nothing of Node, and the package nothing but Node', async () => {
  for (const name of await readdir(file('../src/'))) {
    if (!name.endsWith('.js') || name === 'index.node.js') continue;
    const text = await readFile(file(`../src/${name}`), 'utf8');
    for (const [, from] of text.matchAll(/^(?:import|export) .*from '([^']+)';$/gm)) assert.match(from, /^\.\//, name);
    assert.doesNotMatch(text, /\b(?:require|process|Buffer)\b[.(]/, name);
  }
  const json = JSON.parse(await readFile(file('../package.json'), 'utf8'));
  assert.deepEqual([json.dependencies, json.scripts, json.type], [undefined, undefined, 'module']);
});

const id = '550e8400-e29b-41d4-a716-446655440000';
const credential = await core.hmacCredential('supersecretkey123');
const signed = async (payload, more) => new TextDecoder().decode(await core.sign({ credential, deviceId: 'sensor_001', timestamp: 5, messageId: id, payload, ...more }));

test('values as payloads', async () => {
  for (const [value, text] of [
    [{ a: 1, b: [null, true, 'é\ud83d\ude00'] }, '{"a":1,"b":[null,true,"é😀"]}'], ['{"a":1}', '"{\\"a\\":1}"'], [-0, '0'], [1e21, '1e+21'], [null, 'null'],
    [new Date(0), '"1970-01-01T00:00:00.000Z"'], [new Number(5), '5'], [core.rawJSON(' \t\r\n[1.50] '), '[1.50]'], [core.rawJSON(Buffer.from('1e5')), '1e5'],
    [Object.assign(Object.create(null), { a: 1 }), '{"a":1}'], [{ ['__proto__']: 1 }, '{"__proto__":1}'],
  ]) assert.ok((await signed(value)).includes(`"payload":${text},"signature"`), text);
  const cycle = {};
  cycle.cycle = cycle;
  let deep = 1;
  for (let i = 0; i < 1e5; i++) deep = [deep];
  for (const value of [
    undefined, NaN, Infinity, -Infinity, 5n, Symbol('x'), () => {}, cycle, deep, new Number(NaN), { a: undefined }, [undefined], [,], { a: [5n] }, { [Symbol('x')]: 1 },
    new Map(), new Set(), Promise.resolve(1), new Uint8Array(2), new ArrayBuffer(2), '\ud800', { '\udc00': 1 }, { toJSON() { throw new Error('x'); } },
  ]) await assert.rejects(signed(value), { name: 'BouncerError', reason: 'payload' });
  assert.throws(() => core.rawJSON('"\ud800"'), { reason: 'payload' });
  assert.throws(() => core.rawJSON(5), { reason: 'payload' });
});

test('what is signed is a copy', async () => {
  const bytes = Buffer.from('[1]');
  const raw = core.rawJSON(bytes);
  bytes.fill(0x20);
  assert.ok((await signed(raw)).includes('[1]'));
});

test('types and limits of what is signed', async () => {
  for (const [more, reason] of [
    [{ deviceId: undefined }, 'device_id'], [{ deviceId: 5 }, 'device_id'], [{ deviceId: 'a\n' }, 'device_id'], [{ timestamp: '5' }, 'timestamp'], [{ timestamp: 5n }, 'timestamp'],
    [{ timestamp: 1.5 }, 'timestamp'], [{ timestamp: NaN }, 'timestamp'], [{ messageId: undefined }, 'message_id'], [{ messageId: `${id}\n` }, 'message_id'],
    [{ maxBytes: 100 }, 'too_large'], [{ maxBytes: NaN }, 'too_large'], [{ credential: {} }, 'credential'],
  ]) await assert.rejects(signed(1, more), { reason });
  assert.ok((await signed(1, { timestamp: -0 })).includes('"timestamp":0,'));
});

test('time is linear in the length, and depth costs no stack', async () => {
  const time = async (text) => {
    const begin = process.cpuUsage(); // the time of this process, whatever else the machine does
    await signed(core.rawJSON(text), { maxBytes: 10_000_000 }).catch(() => {});
    const { user, system } = process.cpuUsage(begin);
    return (user + system) / 1000;
  };
  const names = (n) => `{${Array.from({ length: n }, (_, i) => `"n${i}":${i}`).join()}}`;
  for (const make of [names, (n) => '[{"a":'.repeat(n), (n) => `[${'[],'.repeat(n)}1]`, (n) => `"${'\\u00e9'.repeat(n)}"`, (n) => '9'.repeat(5 * n), (n) => ' '.repeat(5 * n), (n) => `"${'\\"'.repeat(n)}`]) {
    assert.ok(await time(make(200_000)) < 3000, make(2));
  }
});

test('secrets', async () => {
  for (const secret of ['', 'key \ud800', '\0\0', ' \t\r\n\v\f', '\u00a0\u2003', '\0 ', new Uint8Array(5), []]) {
    await assert.rejects(core.hmacCredential(secret), { reason: 'credential' });
    await assert.rejects(core.hmacCredential(['good', secret]), { reason: 'credential' });
  }
  await assert.rejects(core.hmacCredential(5), { reason: 'credential' });
  await core.hmacCredential(new Uint8Array([0xff, 0x20]));
  assert.ok(!/secret/.test(JSON.stringify(credential)));
});

test('keys in other forms, and keys that are refused', async () => {
  const [, ed, p256] = doc.devices;
  const message = { deviceId: 'p256_001', timestamp: 5, messageId: id, payload: 1 };
  const { privateKey, publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const verify = await core.messageVerifier(publicKey.export({ type: 'spki', format: 'pem' }));
  const sec1 = `-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n${privateKey.export({ type: 'sec1', format: 'pem' })}`;
  for (const form of [sec1, privateKey.export({ type: 'pkcs8', format: 'pem' }).replaceAll('\n', '\r\n')]) {
    const { signature, signed: bytes } = core.decode(await core.sign({ ...message, credential: await core.p256Credential({ privateKey: form }) }));
    assert.equal(await verify(signature, bytes), true);
  }
  const weak = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), Buffer.from('c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a', 'hex')]);
  const one = Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), Buffer.alloc(32, 1).fill(0, 1)]);
  const pem = (der) => `-----BEGIN PUBLIC KEY-----\n${der.toString('base64')}\n-----END PUBLIC KEY-----\n`;
  const rsa = generateKeyPairSync('rsa', { modulusLength: 1024 });
  const aes = privateKey.export({ type: 'pkcs8', format: 'pem', cipher: 'aes-128-cbc', passphrase: 'x' });
  for (const [privatePEM, commandKeys] of [
    [p256.private_key], ['no key'], [''], [ed.private_key + ed.private_key], [ed.public_key], [aes], [rsa.privateKey.export({ type: 'pkcs8', format: 'pem' })],
    [ed.private_key, ''], [ed.private_key, 'no key'], [ed.private_key, ed.private_key], [ed.private_key, ed.public_key.repeat(9)], [ed.private_key, pem(weak)], [ed.private_key, pem(one)],
    [ed.private_key, ed.public_key.replace('A', '!')], [ed.private_key, ed.public_key.replace(/-----END.*/, '')], [undefined], [5],
  ]) await assert.rejects(core.ed25519Credential({ privateKey: privatePEM, commandKeys }), { reason: 'credential' });
  // A gateway's key of another algorithm is ignored.
  const others = await core.ed25519Credential({ privateKey: ed.private_key, commandKeys: [p256.public_key, rsa.publicKey.export({ type: 'spki', format: 'pem' })] });
  assert.equal(await others.verifyCommand(new Uint8Array(64), new Uint8Array(1)), false);
});

test('P-256 signatures have a low s, and a high one is refused', async () => {
  const p256 = doc.devices[2];
  const n = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;
  const sOf = (signature) => BigInt(`0x${Buffer.from(signature.subarray(32)).toString('hex')}`);
  const turned = (signature) => Buffer.concat([signature.subarray(0, 32), Buffer.from((n - sOf(signature)).toString(16).padStart(64, '0'), 'hex')]);
  const own = await core.p256Credential({ privateKey: p256.private_key, commandKeys: p256.public_key });
  const bytes = new Uint8Array([1, 2, 3]);
  const high = await core.customCredential({ algorithm: 'ECDSA P-256', sign: async (b) => turned(await own.sign(b)), commandKeys: p256.public_key });
  for (let i = 0; i < 20; i++) {
    const signature = await own.sign(bytes);
    assert.ok(sOf(signature) <= n / 2n);
    assert.equal(await own.verifyCommand(signature, bytes), true);
    assert.equal(await own.verifyCommand(new Uint8Array(turned(signature)), bytes), false);
    assert.equal(await high.verifyCommand(await high.sign(bytes), bytes), true); // what a secure element returns is put right
  }
  const key = await core.messageVerifier(p256.public_key);
  assert.equal(await key(new Uint8Array(turned(await own.sign(bytes))), bytes), false);
});

test('a credential of functions', async () => {
  const ed = doc.devices[1];
  const inside = await core.ed25519Credential({ privateKey: ed.private_key, commandKeys: ed.command_keys });
  const outside = await core.customCredential({ algorithm: 'Ed25519', sign: (b) => inside.sign(b), verify: (s, b) => inside.verifyCommand(s, b) });
  const v = doc.commands.find((c) => c.device === 'ed25519_001' && c.expect === 'good' && c.message.text);
  const message = new TextEncoder().encode(v.message.text);
  assert.equal((await core.verifyCommand({ credential: outside, deviceId: 'ed25519_001', message, now: v.now })).id, v.id);
  const yes = await core.customCredential({ algorithm: 'Ed25519', sign: () => new Uint8Array(32), verify: () => 1 });
  await assert.rejects(core.verifyCommand({ credential: yes, deviceId: 'ed25519_001', message, now: v.now }), { reason: 'forged' }); // true alone is true
  await assert.rejects(signed(1, { credential: yes }), { reason: 'credential' });
  for (const keys of [{ algorithm: 'HMAC-SHA256', sign() {} }, { algorithm: 'Ed25519' }, { algorithm: 'Ed25519', sign() {}, verify: 5 }, { algorithm: 'Ed25519', sign() {}, verify() {}, commandKeys: ed.public_key }]) {
    await assert.rejects(core.customCredential(keys), { reason: 'credential' });
  }
});

test('no WebCrypto, or none with Ed25519', async () => {
  const ed = doc.devices[1];
  try {
    core.useWebCrypto({});
    await assert.rejects(core.hmacCredential('x'), { reason: 'unsupported' });
    core.useWebCrypto({ subtle: { importKey: async () => { throw Object.assign(new Error('x'), { name: 'NotSupportedError' }); } } });
    await assert.rejects(core.ed25519Credential({ privateKey: ed.private_key }), { reason: 'unsupported' });
  } finally {
    core.useWebCrypto(webcrypto);
  }
});

test('commands: types of what is given, and a clock that is none', async () => {
  const message = new Uint8Array(2);
  for (const bad of ['{}', null, undefined, new ArrayBuffer(5)]) {
    await assert.rejects(core.verifyCommand({ credential, deviceId: 'sensor_001', message: bad }), { reason: 'malformed' });
  }
  for (const now of [NaN, null, '5', Infinity]) await assert.rejects(core.verifyCommand({ credential, deviceId: 'sensor_001', message, now }), TypeError);
});

test('a memory that was saved', () => {
  for (const saved of [null, {}, { floor: -1, commands: [] }, { floor: 0, commands: [['x', 5]] }, { floor: 0, commands: [[id, '5']] }, { floor: 0, commands: 5 }]) {
    assert.throws(() => core.CommandMemory.fromJSON(saved), TypeError);
  }
  const memory = new core.CommandMemory(3);
  for (let i = 1; i <= 3; i++) memory.check(id.replace(/.$/, i), i * 10);
  const smaller = core.CommandMemory.fromJSON(JSON.parse(JSON.stringify(memory)), 1);
  assert.deepEqual([smaller.size, smaller.floor, smaller.peek(id.replace(/.$/, 1), 10), smaller.peek(id.replace(/.$/, 3), 30)], [1, 20, 'expired', 'repeated']);
  assert.throws(() => memory.check('x', 5), { reason: 'message_id' });
  assert.throws(() => memory.check(id, -1), RangeError);
  assert.throws(() => new core.CommandMemory(0), RangeError);
});

test('answers that are none', () => {
  assert.throws(() => core.answer('x', 'failed'), { reason: 'message_id' });
  assert.throws(() => core.answer(id, 'done'), { reason: 'status' });
  assert.throws(() => core.answer(id, 'failed', core.rawJSON('{')), { reason: 'payload' });
  assert.throws(() => core.answer(id, 'failed', core.rawJSON('['.repeat(63) + ']'.repeat(63))), { reason: 'payload' });
  assert.throws(() => core.answer(id, 'failed', 'x'.repeat(65536)), { reason: 'too_large' });
});
