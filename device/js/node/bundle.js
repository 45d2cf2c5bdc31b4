// The bundle that "bouncerctl device add" makes: device.json and the files that it names.
import { open } from 'node:fs/promises';
import path from 'node:path';
import { ALGORITHM_NAMES, ed25519Credential, hmacCredential, p256Credential } from '../src/credential.js';
import { BouncerError } from '../src/errors.js';
import { isDeviceID } from '../src/ids.js';
import { checkJSON, utf8 } from '../src/json.js';

const MAX_FILE = 1 << 20;
/** In seconds: about 95 years. */
const MAX_TOLERANCE = 3_000_000_000;

/** Reads a file of at most 1 MiB. */
async function read(file) {
  let handle;
  try {
    handle = await open(file, 'r');
    const buffer = Buffer.alloc(MAX_FILE + 1);
    let length = 0;
    for (let n; length < buffer.length && (n = (await handle.read(buffer, length, buffer.length - length, null)).bytesRead) > 0;) length += n;
    if (length > MAX_FILE) throw new Error(`longer than ${MAX_FILE} bytes`);
    return new Uint8Array(buffer.subarray(0, length));
  } catch (error) {
    throw new BouncerError('bundle', `cannot read ${file}: ${error.message}`, { cause: error });
  } finally {
    await handle?.close();
  }
}

function text(bytes, file) {
  try {
    return utf8(bytes);
  } catch {
    throw new BouncerError('bundle', `${file} is not UTF-8`);
  }
}

/** Whether a text is an MQTT topic to publish to. */
const isTopic = (t) => typeof t === 'string' && t.length > 0 && Buffer.byteLength(t) <= 65535 && !/[+#\0]/.test(t);

/** Reads a bundle: {deviceId, host, port, tolerance, credential, ca, certificate, key, topics}. */
export async function readBundle(directory) {
  const file = path.join(directory, 'device.json');
  const wrong = (what) => new BouncerError('bundle', `${file}: ${what}`);
  const bytes = await read(file);
  checkJSON(bytes, 64, 'bundle');
  const json = JSON.parse(utf8(bytes));
  if (json === null || typeof json !== 'object' || Array.isArray(json)) throw wrong('not an object');
  const has = (name) => Object.hasOwn(json, name);

  const name = (member) => {
    if (!has(member) || typeof json[member] !== 'string' || json[member] === '') throw wrong(`"${member}" is not the name of a file`);
    return path.resolve(directory, json[member]);
  };
  const pem = async (member) => text(await read(name(member)), name(member));

  if (!isDeviceID(json.device_id)) throw wrong('"device_id" is not 1 to 64 of A-Z a-z 0-9 . _ : -');
  if (typeof json.host !== 'string' || json.host === '') throw wrong('"host" is missing');
  if (!Number.isSafeInteger(json.port) || json.port < 1 || json.port > 65535) throw wrong('"port" is not 1 to 65535');
  if (!ALGORITHM_NAMES.includes(json.algorithm)) throw wrong(`"algorithm" is not one of ${ALGORITHM_NAMES.join(', ')}`);
  // The gateway's, in seconds; 0 or absent: not known.
  const tolerance = has('tolerance') ? json.tolerance : 0;
  if (!Number.isSafeInteger(tolerance) || tolerance < 0 || tolerance > MAX_TOLERANCE) throw wrong(`"tolerance" is not 0 to ${MAX_TOLERANCE}`);
  const topics = has('topics') ? json.topics : null;
  if (topics === null || typeof topics !== 'object' || !isTopic(topics.data)) throw wrong('"topics" has no "data" that is a topic');
  for (const member of ['response', 'rejected', 'command']) {
    if (topics[member] !== undefined && !isTopic(topics[member])) throw wrong(`"topics": "${member}" is not a topic`);
  }

  let credential;
  if (json.algorithm === 'HMAC-SHA256') {
    let secret = await read(name('secret'));
    if (secret[secret.length - 1] === 0x0a) secret = secret.subarray(0, -1);
    credential = await hmacCredential(secret);
  } else {
    const make = json.algorithm === 'Ed25519' ? ed25519Credential : p256Credential;
    credential = await make({ privateKey: await pem('signing_key'), commandKeys: has('command_keys') ? await pem('command_keys') : undefined });
  }
  return {
    deviceId: json.device_id,
    host: json.host,
    port: json.port,
    tolerance: tolerance || undefined,
    credential,
    ca: await pem('ca'),
    certificate: await pem('certificate'),
    key: await pem('key'),
    topics: { data: topics.data, response: topics.response, rejected: topics.rejected, command: topics.command },
  };
}
