// A real mosquitto, without the plugin, with TLS on a random port of the loopback interface, and bundles for it.
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

const run = promisify(execFile);

/** A directory that is removed after the test. */
export async function temporary(t) {
  const directory = await mkdtemp(path.join(os.tmpdir(), 'bouncer-device-'));
  t.after(() => rm(directory, { recursive: true, force: true }));
  return directory;
}

/** Waits until work returns something true, and returns it. */
export async function until(what, work, milliseconds = 10_000) {
  const end = Date.now() + milliseconds;
  for (;;) {
    const value = await work();
    if (value) return value;
    if (Date.now() > end) throw new Error(`after ${milliseconds} ms not: ${what}`);
    await sleep(10);
  }
}

async function freePort() {
  const server = net.createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

async function isListening(port) {
  return new Promise((resolve) => {
    const socket = net.connect(port, '127.0.0.1', () => { socket.destroy(); resolve(true); });
    socket.on('error', () => resolve(false));
  });
}

export class Broker {
  /** Makes a CA, a server's certificate for localhost, and a broker that is not started yet. */
  static async make(t) {
    const broker = new Broker();
    broker.dir = await temporary(t);
    broker.port = await freePort();
    const file = (name) => path.join(broker.dir, name);
    const openssl = (...args) => run('openssl', args, { cwd: broker.dir });
    await openssl('req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', 'ca.key', '-out', 'ca.crt',
      '-subj', '/CN=test CA', '-days', '2');
    await broker.certificate('server', 'localhost', 'subjectAltName=DNS:localhost');
    await writeFile(file('mosquitto.conf'), [
      `listener ${broker.port} 127.0.0.1`, `cafile ${file('ca.crt')}`, `certfile ${file('server.crt')}`, `keyfile ${file('server.key')}`,
      'require_certificate true', 'use_identity_as_username true', 'allow_anonymous true', `user ${os.userInfo().username}`,
      'persistence false', 'log_dest stdout', '',
    ].join('\n'));
    t.after(() => broker.kill());
    return broker;
  }

  /** A certificate of the CA, NAME.crt, and its key, NAME.key. */
  async certificate(name, cn, extension = 'basicConstraints=CA:FALSE') {
    const openssl = (...args) => run('openssl', args, { cwd: this.dir });
    await openssl('req', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', `${name}.key`, '-out', `${name}.csr`, '-subj', `/CN=${cn}`);
    await writeFile(path.join(this.dir, `${name}.ext`), `${extension}\n`);
    await openssl('x509', '-req', '-in', `${name}.csr`, '-CA', 'ca.crt', '-CAkey', 'ca.key', '-CAcreateserial', '-days', '2', '-extfile', `${name}.ext`, '-out', `${name}.crt`);
  }

  async start() {
    const child = spawn('/usr/sbin/mosquitto', ['-c', path.join(this.dir, 'mosquitto.conf')], { stdio: ['ignore', 'pipe', 'pipe'] });
    this.child = child;
    this.log = '';
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (data) => { this.log = (this.log + data).slice(-20_000); });
    child.exited = once(child, 'exit');
    await until(`mosquitto listens: ${this.log}`, () => child.exitCode !== null || isListening(this.port));
    if (child.exitCode !== null) throw new Error(`mosquitto ended: ${this.log}`);
  }

  async kill() {
    if (!this.child) return;
    this.child.kill('SIGKILL');
    await this.child.exited;
    this.child = null;
  }

  /** Writes a bundle for a device with a shared secret, and returns its directory. */
  async bundle(id = 'sensor_001', change = {}) {
    const directory = path.join(this.dir, id);
    await mkdir(directory);
    await this.certificate(`${id}/device`, id);
    await writeFile(path.join(directory, 'ca.crt'), await readFile(path.join(this.dir, 'ca.crt')));
    await writeFile(path.join(directory, 'secret'), 'supersecretkey123\n');
    await writeFile(path.join(directory, 'device.json'), JSON.stringify({ ...deviceJSON(id, this.port), ...change }));
    return directory;
  }

  /** A client of the test, connected: a backend that sees everything. */
  async client(t, mqtt) {
    const read = (name) => readFile(path.join(this.dir, name));
    if (!this.hasBackend) await this.certificate('backend', 'backend');
    this.hasBackend = true;
    const client = mqtt.connect({
      protocol: 'mqtts', protocolVersion: 5, host: 'localhost', port: this.port, ca: await read('ca.crt'), cert: await read('backend.crt'),
      key: await read('backend.key'), reconnectPeriod: 0,
    });
    t.after(() => client.end(true));
    await once(client, 'connect');
    return client;
  }
}

export const deviceJSON = (id, port) => ({
  device_id: id, host: 'localhost', port, algorithm: 'HMAC-SHA256', ca: 'ca.crt', certificate: 'device.crt', key: 'device.key', secret: 'secret',
  topics: {
    data: `device/${id}/data`, response: `device/${id}/response`, rejected: `device/${id}/rejected`, command: `device/${id}/command`,
  },
});
