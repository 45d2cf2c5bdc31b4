// The state directory: SIGKILL, damage, limits, one Device at a time.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, mkdir, open, readFile, readdir, rename, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { Device } from '../node/index.js';
import { lock } from '../node/lock.js';
import { decodeLog, encodeFrame, Log } from '../node/log.js';
import { temporary, until } from './support/broker.js';
import { Fake, fakeBundle, fakeDevice } from './support/fake.js';

const KEEPER = fileURLToPath(new URL('./support/keeper.js', import.meta.url));

test('SIGKILL at 50 random points loses nothing that was queued, and invents nothing', { timeout: 100_000 }, async (t) => {
  const directory = await temporary(t);
  const bundle = await fakeBundle(path.join(directory, 'bundle'));
  const tried = new Set(), queued = new Set(), acknowledged = new Set(), done = new Set();
  let next = 1, found = 0, kept = 0;
  for (let round = 0; round < 50; round++) {
    const child = spawn(process.execPath, [KEEPER, bundle, path.join(directory, 'state'), String(next)], { stdio: ['ignore', 'pipe', 'inherit'] });
    t.after(() => child.kill('SIGKILL'));
    let output = '';
    child.stdout.on('data', (data) => { output += data; });
    const closed = once(child, 'close');
    await until('it publishes', () => child.exitCode !== null || output.includes('queued'));
    await sleep(Math.random() * 60);
    child.kill('SIGKILL');
    const [code, signal] = await closed;
    assert.deepEqual([code, signal], [null, 'SIGKILL']);
    const lines = output.slice(0, output.lastIndexOf('\n')).split('\n');
    const outbox = JSON.parse(lines[0].slice('outbox '.length));
    assert.deepEqual(outbox, [...outbox].sort((a, b) => a - b), 'in order');
    const there = new Set(outbox);
    assert.equal(there.size, outbox.length, 'each once');
    for (const n of queued) assert.ok(there.has(n) || acknowledged.has(n), `${n} is lost in round ${round}`);
    for (const n of there) assert.ok(tried.has(n) && !done.has(n), `${n} is back in round ${round}`);
    // What is not there now must not come back.
    for (const n of tried) if (!there.has(n)) for (const set of [tried, queued, acknowledged, done]) set.delete(n);
    found = Math.max(found, outbox.length);
    for (const line of lines.slice(1)) {
      const [word, n] = [line.split(' ')[0], Number(line.split(' ')[1])];
      if (word === 'try') { tried.add(n); next = n + 1; }
      if (word === 'queued') { queued.add(n); kept++; }
      if (word === 'acknowledged') acknowledged.add(n);
      if (word === 'done') done.add(n);
    }
  }
  assert.ok(found > 0 && kept > 100, `${found} ${kept}`);
});

test('a full outbox refuses, and drops nothing', async (t) => {
  const directory = await temporary(t);
  const { device } = await fakeDevice(t, directory, { maxMessages: 3, maxBytes: 100 });
  const several = await Promise.allSettled([1, 2, 3, 4, 5].map((n) => device.publish(n)));
  assert.deepEqual(several.map((r) => r.reason?.reason ?? r.status), ['fulfilled', 'fulfilled', 'fulfilled', 'outbox_full', 'outbox_full']);
  await device.close();
  const { device: again, fake } = await fakeDevice(t, directory, { maxMessages: 3, maxBytes: 100 });
  await assert.rejects(again.publish(6), { reason: 'outbox_full' });
  again.start();
  await until('it is empty', () => again.pending === 0);
  assert.deepEqual(fake.sent.map((m) => m.payload), [1, 2, 3]);
  await again.publish('x'.repeat(90));
  await assert.rejects(again.publish('x'.repeat(99)), { reason: 'outbox_full' });
  await until('it is empty', () => again.pending === 0);
  await again.publish('x'.repeat(98));
});

test('payloads that cannot be sent are refused by publish', async (t) => {
  const { device } = await fakeDevice(t, await temporary(t));
  const deep = JSON.parse('['.repeat(64) + ']'.repeat(64));
  for (const payload of [undefined, NaN, 1n, { a: Infinity }, deep, '\ud800']) await assert.rejects(device.publish(payload), { reason: 'payload' });
  await assert.rejects(device.publish('x'.repeat(65536)), { reason: 'too_large' });
  assert.equal(device.pending, 0);
});

test('two Devices on one state', async (t) => {
  const directory = await temporary(t);
  const { device } = await fakeDevice(t, directory);
  await assert.rejects(fakeDevice(t, directory), { reason: 'locked' });
  await device.close();
  const { device: second } = await fakeDevice(t, directory);
  await second.close();
});

const HOLDER = `import { lock } from ${JSON.stringify(new URL('../node/lock.js', import.meta.url).href)};
  await lock(process.argv[1]); console.log('locked'); setInterval(() => {}, 1000);`;

async function holder(t, directory) {
  const child = spawn(process.execPath, ['--input-type=module', '-e', HOLDER, directory], { stdio: ['ignore', 'pipe', 'inherit'] });
  t.after(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  return child;
}

test('a lock ends with its process, also when that is killed or stopped', async (t) => {
  // Longer than the address of a socket may be.
  const directory = path.join(await temporary(t), 'x'.repeat(120));
  await mkdir(directory);
  const child = await holder(t, directory);
  await assert.rejects(lock(directory), { reason: 'locked' });
  child.kill('SIGSTOP');
  await assert.rejects(lock(directory), { reason: 'locked' });
  child.kill('SIGKILL');
  await once(child, 'exit');
  assert.equal((await readdir(directory)).length, 1); // the dead process's claim
  const release = await lock(directory);
  assert.equal((await readdir(directory)).length, 1);
  await assert.rejects(lock(directory), { reason: 'locked' });
  await release();
  assert.deepEqual(await readdir(directory), []);
});

test('of many that start at the same time, at most one has the lock', async (t) => {
  const directory = await temporary(t);
  let rounds = 0;
  for (let i = 0; i < 20; i++) {
    let holders = 0;
    const results = await Promise.allSettled(Array.from({ length: 8 }, async () => {
      const release = await lock(directory);
      assert.equal(++holders, 1);
      rounds++;
      await sleep(5);
      holders--;
      await release();
    }));
    for (const { reason } of results) if (reason) assert.equal(reason.reason, 'locked');
  }
  assert.ok(rounds > 20, `${rounds}`);
  assert.deepEqual(await readdir(directory), []);
});

test('what a start that was killed left in the directory is removed', async (t) => {
  const directory = await temporary(t);
  const child = await holder(t, directory);
  child.kill('SIGKILL');
  await once(child, 'exit');
  const [name] = await readdir(directory);
  await rename(path.join(directory, name), path.join(directory, `${name}.new`));
  await writeFile(path.join(directory, 'lock-other'), '');
  await (await lock(directory))();
  assert.deepEqual(await readdir(directory), ['lock-other']);
});

const record = (n) => ({ n, bytes: new Uint8Array(Buffer.from(`payload ${n}\n{"n":0}\n`)) });

test('a damaged end costs what was being written', () => {
  const frames = [1, 2, 3].map((n) => encodeFrame([record(n), { second: n }]));
  const all = Buffer.concat(frames);
  const before = frames[0].length + frames[1].length;
  for (let length = before; length < all.length; length++) {
    const { records, end } = decodeLog(all.subarray(0, length), 'x');
    assert.equal(records.length, 4);
    assert.equal(end, before);
  }
  for (let at = before; at < all.length; at++) {
    const damagedEnd = Buffer.from(all);
    damagedEnd[at] ^= 0x40;
    assert.equal(decodeLog(damagedEnd, 'x').records.length, 4);
  }
  for (const tail of [Buffer.alloc(5000), Buffer.from([0xff, 0x4d, 0x42, 0x44]), Buffer.from('garbage \xff\x4d\x42\x44\xff\xff\xff\xff', 'latin1')]) {
    const { records, end } = decodeLog(Buffer.concat([all, tail]), 'x');
    assert.deepEqual(records, [1, 2, 3].flatMap((n) => [{ ...record(n) }, { second: n }].map((r) => (r.bytes ? { n, bytes: r.bytes } : r))).map((r) => r));
    assert.equal(end, all.length);
  }
});

test('damage in the middle is an error, and touches nothing', async (t) => {
  const frames = [1, 2, 3].map((n) => encodeFrame([record(n)]));
  const all = Buffer.concat(frames);
  for (let at = 0; at < frames[0].length + frames[1].length; at++) {
    const damaged = Buffer.from(all);
    damaged[at] ^= 0x01;
    assert.throws(() => decodeLog(damaged, 'x'), { reason: 'state' });
  }
  const directory = await temporary(t);
  const { device } = await fakeDevice(t, directory);
  for (let i = 0; i < 3; i++) await device.publish(i);
  await device.close();
  const file = path.join(directory, 'state', 'state.log');
  const good = await readFile(file);
  const bad = Buffer.from(good);
  bad[20] ^= 1;
  await writeFile(file, bad);
  await assert.rejects(fakeDevice(t, directory), { reason: 'state' });
  await assert.rejects(fakeDevice(t, directory), { reason: 'state' }); // the lock is free again
  assert.deepEqual(await readFile(file), bad);
  await writeFile(file, good.subarray(0, -3));
  const { device: again } = await fakeDevice(t, directory);
  assert.equal(again.pending, 2);
});

test('a snapshot that is damaged is an error, and is not begun without', async (t) => {
  const directory = await temporary(t);
  const { device } = await fakeDevice(t, directory);
  await device.publish(1);
  await device.close();
  const { device: second } = await fakeDevice(t, directory); // the file is a snapshot alone
  await second.close();
  const file = path.join(directory, 'state', 'state.log');
  const good = await readFile(file);
  const flipped = Buffer.from(good);
  flipped[30] ^= 1;
  for (const bad of [Buffer.alloc(0), Buffer.alloc(good.length), good.subarray(0, 20), good.subarray(0, -1), flipped, encodeFrame([{ t: 'next', d: 1 }])]) {
    await writeFile(file, bad);
    await assert.rejects(fakeDevice(t, directory), { reason: 'state', message: /damaged/ });
    assert.deepEqual(await readFile(file), bad);
  }
  await writeFile(file, good);
  assert.equal((await fakeDevice(t, directory)).device.pending, 1);
});

test('the state of another device or of a later version is refused', async (t) => {
  const directory = await temporary(t);
  const { device } = await fakeDevice(t, directory);
  await device.close();
  const file = path.join(directory, 'state', 'state.log');
  for (const other of [{ t: 'device', format: 1, device_id: 'sensor_002' }, { t: 'device', format: 2, device_id: 'sensor_001' }, { t: 'unknown' }]) {
    await writeFile(file, encodeFrame([other, { t: 'snapshot' }]));
    await assert.rejects(fakeDevice(t, directory), { reason: 'state', message: /format|device|type/ });
  }
});

test('files are for the owner alone, and the log stays small', async (t) => {
  const directory = await temporary(t);
  const { device } = await fakeDevice(t, directory);
  device.start();
  for (let i = 0; i < 8; i++) {
    const deliveries = await Promise.all(Array.from({ length: 20 }, () => device.publish('x'.repeat(20_000))));
    await Promise.all(deliveries.map((d) => d.outcome));
  }
  await until('it is empty', () => device.pending === 0);
  const { size, mode } = await stat(path.join(directory, 'state', 'state.log'));
  assert.ok(size < (1 << 20) + 3 * 400_000, `${size}`); // 3.2 MB went through it
  assert.equal(mode & 0o777, 0o600);
  assert.equal((await stat(path.join(directory, 'state'))).mode & 0o777, 0o700);
  await device.close();
  const { device: again } = await fakeDevice(t, directory);
  assert.equal(again.pending, 0);
  assert.ok((await stat(path.join(directory, 'state', 'state.log'))).size < 1000);
});

/** Lets writes of files fail, after some bytes, while work runs. */
async function withFullDisk(directory, work) {
  const probe = await open(path.join(directory, 'probe'), 'w');
  const prototype = Object.getPrototypeOf(probe);
  await probe.close();
  const { write } = prototype;
  prototype.write = async function failing(buffer, offset, length, position) {
    await write.call(this, buffer, offset, Math.min(10, length), position);
    throw Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' });
  };
  try {
    await work();
  } finally {
    prototype.write = write;
  }
}

test('a full disk: publish fails, and works again when there is room', async (t) => {
  const directory = await temporary(t);
  const { device, fake } = await fakeDevice(t, directory);
  await device.publish('before');
  await withFullDisk(directory, async () => {
    await assert.rejects(device.publish('meanwhile'), { reason: 'state' });
    await assert.rejects(device.publish('meanwhile'), { reason: 'state' });
    device.start();
    await until('it says so', () => device.errors.length > 0);
    assert.equal(fake.sent.length, 0); // what cannot be kept is not sent
  });
  await device.publish('after');
  await until('it is empty', () => device.pending === 0);
  assert.deepEqual(fake.sent.map((m) => m.payload), ['before', 'after']);
  await device.close();
  const { device: again } = await fakeDevice(t, directory);
  assert.equal(again.pending, 0);
});

test('what a failed write left behind is not read', async (t) => {
  const directory = await temporary(t);
  const file = path.join(directory, 'log');
  const kept = [];
  const log = new Log(file, () => kept.map((n) => ({ n })));
  await log.open(() => {});
  await log.append([{ n: 1 }], (r) => kept.push(r.n));
  await withFullDisk(directory, async () => {
    await assert.rejects(log.append([{ n: 2 }], (r) => kept.push(r.n)), { reason: 'state' });
    await copyFile(file, `${file}.crash`); // as a crash would leave it here
    await assert.rejects(log.append([{ n: 3 }], (r) => kept.push(r.n), { anyway: true }), { reason: 'state' });
  });
  assert.deepEqual(kept, [1, 3]);
  await log.append([{ n: 4 }], (r) => kept.push(r.n));
  await log.close();
  assert.deepEqual(decodeLog(await readFile(file), file).records, [{ n: 1 }, { n: 3 }, { t: 'snapshot' }, { n: 4 }]);
  assert.deepEqual(decodeLog(await readFile(`${file}.crash`), file).records, [{ t: 'snapshot' }, { n: 1 }]);
});

test('a signing function that fails is tried again', async (t) => {
  const directory = await temporary(t);
  const { device, fake } = await fakeDevice(t, directory, { now: (() => { let n = 0; return () => (n++ === 1 ? NaN : 1_700_000_000); })() });
  const delivery = await device.publish(1);
  device.start();
  assert.equal((await delivery.outcome).outcome, 'accepted');
  assert.equal(fake.sent.length, 1);
});

test('options are checked', async (t) => {
  const bundle = await fakeBundle(await temporary(t));
  for (const options of [{}, { mqtt: {} }, { mqtt: new Fake(), maxMessages: 0 }, { mqtt: new Fake(), whenUncertain: 'x' }, { mqtt: new Fake(), now: 5 }]) {
    await assert.rejects(Device.fromBundle(bundle, options), (error) => error instanceof TypeError || error instanceof RangeError);
  }
  const device = await Device.fromBundle(bundle, { mqtt: { default: new Fake() } });
  await device.close();
  assert.throws(() => new Device());
});
