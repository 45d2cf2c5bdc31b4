// Commands to a device (docs/commands.md): verifying, remembering, answering; and notices on the rejected topic.
import { Credential } from './credential.js';
import { decode, MAX_MESSAGE_BYTES } from './envelope.js';
import { BouncerError } from './errors.js';
import { isCommandID, isUUID } from './ids.js';
import { bytesOf, checkJSON, digitsAlone, plainString, utf8 } from './json.js';
import { concat } from './pem.js';
import { payloadBytes } from './value.js';

const MAX_COMMAND_BYTES = 66560;
const MAX_NOTICE_BYTES = 65536;

/** A command that was verified. `text` is its JSON text as sent, `value` what JSON.parse makes of it. */
export class Command {
  #value;
  #parsed = false;

  /** @internal */
  constructor(id, timestamp, expires, text) {
    this.id = id;
    this.timestamp = timestamp;
    this.expires = expires;
    this.text = text;
  }

  get value() {
    if (!this.#parsed) {
      this.#value = JSON.parse(this.text);
      this.#parsed = true;
    }
    return this.#value;
  }
}

/**
 * Verifies what came on the command topic. now is the time in seconds since 1970, absent without a clock.
 * Throws a BouncerError: malformed, foreign, forged or expired.
 */
export async function verifyCommand({ credential, deviceId, message, now }) {
  if (!(credential instanceof Credential)) throw new BouncerError('credential', 'no Credential');
  if (now !== undefined && !(typeof now === 'number' && Number.isFinite(now))) throw new TypeError('now must be a number of seconds, or absent');
  const malformed = (why) => new BouncerError('malformed', why);
  const e = decode(message, MAX_COMMAND_BYTES);
  if (e.deviceId !== deviceId) throw new BouncerError('foreign', 'for another device');
  if (!(await credential.verifyCommand(e.signature, e.signed))) throw new BouncerError('forged', 'the signature is not good');
  if (!isCommandID(e.messageId)) throw malformed('message_id is not of version 8');
  const { members } = checkJSON(e.payload, 63, 'malformed');
  if (members?.length !== 2) throw malformed('the payload is not an object of exactly command and expires');
  let text = null, expires = -1;
  for (const { name, escaped, start, end } of members) {
    const value = e.payload.subarray(start, end);
    if (escaped) throw malformed('a name of the payload has an escape');
    if (name === 'command') text = utf8(value);
    else if (name === 'expires') expires = digitsAlone(value);
  }
  if (text === null || expires < 0) throw malformed('the payload is not an object of exactly command and expires');
  if (now !== undefined && !(now < expires)) throw new BouncerError('expired');
  return new Command(e.messageId, e.timestamp, expires, text);
}

const idKey = (id) => {
  if (!isUUID(id)) throw new BouncerError('message_id', 'not a UUID of 36 characters');
  return id.toLowerCase();
};
const checkExpires = (expires) => {
  if (!Number.isSafeInteger(expires) || expires < 0) throw new RangeError('expires must be 0 to 9007199254740991');
};

/** Remembers commands, so that none is executed twice. Keep what toJSON returns on the disk before a command is executed. */
export class CommandMemory {
  #capacity;
  #floor = 0;
  #table = new Map(); // id in lower case -> expires, in the order in which they came

  constructor(capacity = 256) {
    if (!Number.isSafeInteger(capacity) || capacity < 1 || capacity > 65536) throw new RangeError('capacity must be 1 to 65536');
    this.#capacity = capacity;
  }

  get capacity() { return this.#capacity; }
  get floor() { return this.#floor; }
  get size() { return this.#table.size; }

  /** What check would return. Changes nothing. */
  peek(id, expires) {
    checkExpires(expires);
    if (this.#table.has(idKey(id))) return 'repeated';
    return expires > this.#floor ? 'new' : 'expired';
  }

  /** "new": execute it, once; "repeated": publish its answer again; "expired": neither. A new one is remembered. */
  check(id, expires) {
    const answer = this.peek(id, expires);
    if (answer === 'new') {
      this.#table.set(idKey(id), expires);
      this.#shrink();
    }
    return answer;
  }

  has(id) { return this.#table.has(idKey(id)); }

  #shrink() {
    while (this.#table.size > this.#capacity) {
      let lowest, at = Infinity;
      for (const [id, expires] of this.#table) if (expires < at) [lowest, at] = [id, expires];
      this.#table.delete(lowest);
      this.#floor = Math.max(this.#floor, at);
    }
  }

  toJSON() {
    return { floor: this.#floor, commands: [...this.#table] };
  }

  /** What toJSON made, with a capacity that may be another one. Throws a TypeError for anything else. */
  static fromJSON(saved, capacity = 256) {
    const memory = new CommandMemory(capacity);
    const { floor, commands } = saved ?? {};
    const isTime = (n) => Number.isSafeInteger(n) && n >= 0;
    if (!isTime(floor) || !Array.isArray(commands) || commands.length > 65536) throw new TypeError('not a saved memory of commands');
    memory.#floor = floor;
    for (const entry of commands) {
      if (!Array.isArray(entry) || entry.length !== 2 || !isUUID(entry[0]) || !isTime(entry[1])) throw new TypeError('not a saved memory of commands');
      memory.#table.set(entry[0].toLowerCase(), entry[1]);
    }
    memory.#shrink();
    return memory;
  }
}

const STATUSES = ['succeeded', 'failed', 'rejected'];

/**
 * The payload of an answer, to be signed and published: UTF-8 bytes for rawJSON. result is a value or rawJSON; undefined: none.
 * Throws a BouncerError: message_id, status, payload or too_large.
 */
export function answer(commandId, status, result, maxBytes = MAX_MESSAGE_BYTES) {
  if (!isUUID(commandId)) throw new BouncerError('message_id', 'not a UUID of 36 characters');
  if (!STATUSES.includes(status)) throw new BouncerError('status', 'not succeeded, failed or rejected');
  const head = `{"command_id":"${commandId}","status":"${status}"`;
  if (result === undefined) return bytesOf(`${head}}`);
  const text = payloadBytes(result, maxBytes, 62);
  const bytes = concat(bytesOf(`${head},"result":`), text, bytesOf('}'));
  if (bytes.length > maxBytes) throw new BouncerError('too_large', `the answer has ${bytes.length} bytes`);
  return bytes;
}

/** Reads a notice of the rejected topic: {messageId, reason, serverTime}, messageId null where it names none; else null. */
export function readNotice(bytes) {
  if (!(bytes instanceof Uint8Array) || bytes.length > MAX_NOTICE_BYTES) return null;
  let members;
  try {
    ({ members } = checkJSON(bytes, 64, 'malformed'));
  } catch (error) {
    if (error instanceof BouncerError) return null;
    throw error;
  }
  const found = new Map((members ?? []).map((m) => [m.name, bytes.subarray(m.start, m.end)]));
  const [id, reason, time] = ['message_id', 'reason', 'server_time'].map((name) => found.get(name));
  if (!id || !reason || !time || reason[0] !== 0x22) return null;
  const messageId = utf8(id) === 'null' ? null : plainString(id);
  const serverTime = digitsAlone(time);
  if ((messageId !== null && !isUUID(messageId)) || serverTime < 0) return null;
  if (messageId === null && utf8(id) !== 'null') return null;
  return { messageId, reason: JSON.parse(utf8(reason)), serverTime };
}
