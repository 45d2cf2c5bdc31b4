// One Device for each state directory. Node has no flock, and abstract UNIX sockets only since version 20. So a Device claims the directory
// with a UNIX socket in it that it listens on, under a name that is never used again: lock-RANDOM. Whether the claim's process still
// lives, a connection tells: the kernel refuses it as soon as the process is gone, SIGKILL or not.
//
//	1. Listen on lock-RANDOM.new, and rename it to lock-RANDOM: what has that name accepts connections.
//	2. List the directory. Remove each other claim that refuses connections. If there is one that does not, take back the own claim,
//	   and try again a few times.
//	3. Otherwise the lock is taken.
//
// Of two Devices the one that lists last sees the other's claim, because each claims before it lists. So never do both go on; both may step
// back, and try again after different times. A dead claim can be removed by anyone, because its name does not come back.
import { randomBytes } from 'node:crypto';
import net from 'node:net';
import { open, readdir, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BouncerError } from '../src/errors.js';

const ATTEMPTS = 5;
const CLAIM = /^lock-[0-9a-f]{16}$/;
const UNFINISHED = /^lock-[0-9a-f]{16}\.new$/;

function listen(address) {
  return new Promise((resolve, reject) => {
    const server = net.createServer((socket) => socket.destroy());
    server.once('error', reject);
    // exclusive: in a cluster's worker, the primary would listen in its place.
    server.listen({ path: address, exclusive: true }, () => {
      server.removeListener('error', reject);
      server.on('error', () => {});
      resolve(server);
    });
    server.unref();
  });
}

/** Whether a process listens at the address. In doubt it does. */
function isAlive(address) {
  return new Promise((resolve) => {
    const socket = net.connect({ path: address });
    const done = (alive) => {
      socket.destroy();
      resolve(alive);
    };
    socket.setTimeout(2000, () => done(true));
    socket.once('connect', () => done(true));
    socket.once('error', (error) => done(!['ECONNREFUSED', 'ENOENT'].includes(error.code)));
  });
}

/** Takes the lock of a directory; returns the function that frees it. Throws a BouncerError, locked, if another Device has it. */
export async function lock(directory) {
  const handle = await open(directory, 'r');
  try {
    // A socket's address has at most 107 bytes. Through the descriptor it is short, where there is /proc.
    const base = process.platform === 'linux' ? `/proc/self/fd/${handle.fd}` : directory;
    for (let i = 0; i < ATTEMPTS; i++) {
      if (i > 0) await sleep(20 + Math.random() * 100);
      const release = await claim(base);
      if (release === null) continue;
      return async () => {
        await release();
        await handle.close();
      };
    }
    throw new BouncerError('locked', `another Device uses ${directory}`);
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Tries it once: the function that frees the lock, or null. */
async function claim(base) {
  const own = `lock-${randomBytes(8).toString('hex')}`;
  const address = (name) => path.join(base, name);
  const server = await listen(address(`${own}.new`));
  const release = async () => {
    await rm(address(own), { force: true });
    await new Promise((resolve) => server.close(resolve));
  };
  try {
    await rename(address(`${own}.new`), address(own));
    let others = 0;
    for (const name of await readdir(base)) {
      if (name === own || !(CLAIM.test(name) || UNFINISHED.test(name))) continue;
      // One that is not listening yet is no claim yet. If it is removed, its rename fails, and it tries again.
      if (!(await isAlive(address(name)))) await rm(address(name), { force: true });
      else if (CLAIM.test(name)) others++;
    }
    if (others === 0) return release;
  } catch (error) {
    await release();
    if (error.code === 'ENOENT') return null;
    throw error;
  }
  await release();
  return null;
}
