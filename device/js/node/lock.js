// One Device for each state directory. Node has no flock. On Linux the lock is an abstract UNIX socket whose name has the
// directory's device and inode: the kernel takes it away with the process, SIGKILL or not, so it is never stale, and taking it is
// one atomic operation. Abstract sockets belong to a network namespace, so containers that share the directory do not see each
// other's; for them there is a second socket, the file "lock" in the directory. It outlives a process that was killed: a file that
// refuses connections is stale, and replaced.
import net from 'node:net';
import { open, rm, stat } from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { BouncerError } from '../src/errors.js';

const locked = (directory) => new BouncerError('locked', `another Device uses ${directory}`);

function listen(address) {
  return new Promise((resolve, reject) => {
    const server = net.createServer((socket) => socket.destroy());
    server.on('error', reject);
    // exclusive: in a cluster's worker, the primary would listen in its place, and share the socket.
    server.listen({ path: address, exclusive: true }, () => resolve(server));
    server.unref();
  });
}

/** Whether a process listens at the address. */
function isAlive(address) {
  return new Promise((resolve) => {
    const socket = net.connect({ path: address });
    socket.setTimeout(2000, () => { resolve(true); socket.destroy(); }); // a full backlog: there is a process
    socket.on('connect', () => { resolve(true); socket.destroy(); });
    socket.on('error', (error) => resolve(!['ECONNREFUSED', 'ENOENT'].includes(error.code)));
  });
}

const closeServer = (server) => new Promise((resolve) => server.close(resolve));

/** Takes the lock of a directory; throws a BouncerError, locked, if another Device has it. */
export async function lock(directory) {
  const handle = await open(directory, 'r');
  const servers = [];
  const release = async () => {
    await Promise.all(servers.map(closeServer));
    await handle.close();
  };
  try {
    // Through the descriptor the address is short: that of a socket has at most 107 bytes.
    let file = path.join(directory, 'lock');
    if (process.platform === 'linux') {
      const { dev, ino } = await handle.stat({ bigint: true });
      file = `/proc/self/fd/${handle.fd}/lock`;
      servers.push(await take(directory, () => listen(`\0mosquitto-bouncer-device:${dev}:${ino}`)));
    }
    if (await isAlive(file)) throw locked(directory);
    await rm(file, { force: true });
    servers.push(await take(directory, () => listen(file)));
    if (process.platform !== 'linux') {
      // Nothing kept another process from replacing the same stale file: look again when it has had the time to.
      const { ino } = await stat(file);
      await sleep(100);
      if ((await stat(file).catch(() => null))?.ino !== ino) throw locked(directory);
    }
  } catch (error) {
    await release();
    throw error;
  }
  return release;
}

async function take(directory, work) {
  try {
    return await work();
  } catch (error) {
    throw error.code === 'EADDRINUSE' ? locked(directory) : error;
  }
}
