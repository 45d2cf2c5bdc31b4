// Reading a bundle, the agent and the cross-checker as programs, the types, and the program of README.md.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, readFile, symlink, mkdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { readBundle } from '../node/bundle.js';
import { decode, messageVerifier } from '../node/index.js';
import { Broker, temporary, until } from './support/broker.js';
import { fakeBundle } from './support/fake.js';
import { loadMQTT } from './support/mqtt.js';

const run = promisify(execFile);
const file = (name) => fileURLToPath(new URL(name, import.meta.url));
const doc = JSON.parse(await readFile(file('../../vectors/device-v1.json'), 'utf8'));

test('a bundle with a secret', async (t) => {
  const directory = await fakeBundle(await temporary(t), { unknown: [1], topics: { data: 'd' } });
  const bundle = await readBundle(directory);
  assert.deepEqual([bundle.deviceId, bundle.host, bundle.port, bundle.ca, bundle.topics], ['sensor_001', 'localhost', 8883, 'x', { data: 'd', response: undefined, rejected: undefined, command: undefined }]);
  const signature = async () => Buffer.from(await (await readBundle(directory)).credential.sign(new Uint8Array(1))).toString('hex');
  const one = await signature();
  await writeFile(path.join(directory, 'secret'), 'supersecretkey123');
  assert.equal(await signature(), one); // one newline at the end is not of the secret
  await writeFile(path.join(directory, 'secret'), 'supersecretkey123\n\n');
  assert.notEqual(await signature(), one); // a second one is
});

test('bundles with keys', async (t) => {
  for (const device of doc.devices.slice(1)) {
    const directory = await fakeBundle(await temporary(t), { device_id: device.device_id, algorithm: device.algorithm, signing_key: 'device.key', command_keys: 'command.pub' });
    await writeFile(path.join(directory, 'device.key'), device.private_key);
    await writeFile(path.join(directory, 'command.pub'), device.command_keys.join(''));
    const { credential } = await readBundle(directory);
    assert.equal(credential.algorithm, device.algorithm);
    const v = doc.commands.find((c) => c.device === device.device_id && c.expect === 'good' && c.message.text);
    const e = decode(new TextEncoder().encode(v.message.text));
    assert.equal(await credential.verifyCommand(e.signature, e.signed), true);
    assert.equal(await (await messageVerifier(device.public_key))(await credential.sign(e.signed), e.signed), true);
    await writeFile(path.join(directory, 'device.json'), JSON.stringify({ ...JSON.parse(await readFile(path.join(directory, 'device.json'))), command_keys: undefined }));
    assert.equal(await (await readBundle(directory)).credential.verifyCommand(e.signature, e.signed), false); // without keys no command is good
  }
});

test('bundles that are not good', async (t) => {
  const directory = await temporary(t);
  await assert.rejects(readBundle(directory), { reason: 'bundle' });
  for (const change of [
    { device_id: 'a b' }, { device_id: undefined }, { host: '' }, { host: 5 }, { tolerance: -1 }, { tolerance: '60' }, { tolerance: 1e15 }, { tolerance: null }, { port: 0 }, { port: '8883' }, { port: 65536 }, { algorithm: 'none' }, { algorithm: 'constructor' }, { topics: {} },
    { topics: undefined }, { topics: { data: 'a/#' } }, { topics: { data: 'd', command: '' } }, { secret: undefined }, { secret: 'missing' }, { secret: '.' }, { ca: null }, { key: '' },
    { algorithm: 'Ed25519' },
  ]) await assert.rejects(readBundle(await fakeBundle(directory, change)), { reason: 'bundle' }, JSON.stringify(change));
  await fakeBundle(directory);
  await writeFile(path.join(directory, 'secret'), '\n');
  await assert.rejects(readBundle(directory), { reason: 'credential' });
  await writeFile(path.join(directory, 'secret'), 'x'.repeat((1 << 20) + 1));
  await assert.rejects(readBundle(directory), { reason: 'bundle' });
  for (const text of ['', '[]', '{"device_id":"a","device_id":"b"}', '{', '\xff']) {
    await writeFile(path.join(directory, 'device.json'), text, 'latin1');
    await assert.rejects(readBundle(directory), { reason: 'bundle' });
  }
});

async function program(t, name, ...args) {
  const child = spawn(process.execPath, ['--no-warnings', file(`../${name}`), ...args], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  const lines = [];
  createInterface({ input: child.stdout }).on('line', (line) => lines.push(JSON.parse(line)));
  const order = (value) => child.stdin.write(`${typeof value === 'string' ? value : JSON.stringify(value)}\n`);
  const event = (name) => until(`${name}: ${JSON.stringify(lines)}`, () => lines.find((l) => l.event === name));
  return { child, lines, order, event, closed: once(child, 'close') };
}

test('the agent', async (t) => {
  const broker = await Broker.make(t);
  await broker.start();
  const bundle = await broker.bundle();
  const state = path.join(broker.dir, 'state');
  const client = await broker.client(t, loadMQTT());
  const seen = [];
  client.on('message', (topic, payload) => seen.push(payload.toString()));
  await new Promise((resolve) => client.subscribe('device/sensor_001/data', resolve));

  const agent = await program(t, 'agent.js', bundle, state);
  await agent.event('ready');
  agent.order({ op: 'clock', offset: -3600 });
  agent.order('{"op":"publish","tag":"a","payload":{"x": 1.50}}');
  const queued = await agent.event('queued');
  assert.equal(queued.tag, 'a');
  agent.order('{"op":"publish","tag":"b","payload":NaN}');
  assert.deepEqual(await agent.event('not_queued'), { event: 'not_queued', tag: 'b', error: 'payload' });
  agent.order({ op: 'start' });
  await agent.event('connected');
  const outcome = await agent.event('outcome');
  assert.match(outcome.message_id, /^[0-9a-f-]{36}$/);
  assert.deepEqual({ ...outcome, message_id: '' }, { event: 'outcome', delivery: queued.delivery, outcome: 'accepted', reason: '', message_id: '', sent: 1, may_be_repeated: false });
  await until('the message', () => seen.length === 1);
  assert.ok(seen[0].includes('"payload":{"x": 1.50},"signature"'));
  assert.ok(Math.abs(JSON.parse(seen[0]).timestamp - (Date.now() / 1000 - 3600)) < 30);
  agent.order({ op: 'stop' });
  assert.deepEqual(await agent.closed, [0, null]);

  const second = await program(t, 'agent.js', bundle, state);
  await second.event('ready');
  second.child.stdin.end();
  assert.deepEqual(await second.closed, [0, null]);
});

test('the cross-checker', async (t) => {
  const checker = await program(t, 'crosscheck.js');
  const v = doc.sign.find((s) => s.message?.text && s.device === 'sensor_001');
  const c = doc.commands.find((s) => s.expect === 'good' && s.message.text && s.device === 'p256_001');
  const bad = doc.messages.find((m) => m.expect === 'bad_signature' && m.device === 'ed25519_001');
  const device = (id) => doc.devices.find((d) => d.device_id === id);
  checker.order({ do: 'sign', device: device(v.device), timestamp: v.timestamp, message_id: v.message_id, payload: v.payload.text });
  checker.order({ do: 'sign', device: device(v.device), timestamp: v.timestamp, message_id: v.message_id, payload: '{' });
  checker.order({ do: 'verify', device: device(v.device), message: v.message.text });
  checker.order({ do: 'verify', device: device(v.device), message: '{}' });
  checker.order({ do: 'verify', device: device(bad.device), message: bad.message.text });
  checker.order({ do: 'command', device: device(c.device), message: c.message.text, now: c.now });
  checker.order({ do: 'command', device: device('sensor_001'), message: c.message.text });
  checker.child.stdin.end();
  assert.deepEqual(await checker.closed, [0, null]);
  assert.deepEqual(checker.lines, [
    { message: v.message.text }, { error: 'payload' }, { result: 'good' }, { result: 'malformed' }, { result: 'bad_signature' },
    { result: 'good', id: c.id, command: c.command.text, expires: c.expires }, { result: 'foreign' },
  ]);
});

test('the types, with the TypeScript compiler', async (t) => {
  await access('/usr/bin/tsc').catch(() => { throw new Error('there is no TypeScript compiler: run scripts/install-deps test'); });
  // The compiler finds the package by its name from a directory inside it.
  await run('/usr/bin/tsc', ['-p', file('./types')]).catch((error) => { throw new Error(error.stdout); });
  const { Device } = await import('../node/index.js');
  const core = await import('../src/index.js');
  const declared = await readFile(file('../src/index.d.ts'), 'utf8');
  for (const name of Object.keys(core)) assert.match(declared, new RegExp(`export declare (?:function|class|const) ${name}\\b`));
  const node = await readFile(file('../node/index.d.ts'), 'utf8');
  for (const name of Object.getOwnPropertyNames(Device.prototype)) if (name !== 'constructor') assert.match(node, new RegExp(`\\b${name}\\(|readonly ${name}\\b`));
});

test('the program of README.md', async (t) => {
  const broker = await Broker.make(t);
  await broker.start();
  const bundle = await broker.bundle();
  const readme = await readFile(file('../README.md'), 'utf8');
  const [, source] = /<!-- sample: device -->\n```js\n([\s\S]*?)```/.exec(readme);
  assert.ok(source.trim().split('\n').length <= 12);
  const directory = path.dirname(bundle);
  await mkdir(path.join(directory, 'node_modules'));
  await symlink(file('..'), path.join(directory, 'node_modules/mosquitto-bouncer-device'));
  // mqtt.js as npm installs it: Debian's, whose own dependencies need NODE_PATH.
  await mkdir(path.join(directory, 'node_modules/mqtt'));
  await writeFile(path.join(directory, 'node_modules/mqtt/index.js'), `module.exports = require(${JSON.stringify(file('./support/mqtt.cjs'))});`);
  await writeFile(path.join(directory, 'app.mjs'), source);
  const { stdout } = await run(process.execPath, ['--no-warnings', 'app.mjs'], { cwd: directory, timeout: 20_000 });
  assert.match(stdout, /^accepted/m);
});
