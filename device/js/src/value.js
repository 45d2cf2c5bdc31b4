// Payloads and results: JSON text that the application made, or a value that is turned into it.
import { BouncerError } from './errors.js';
import { bytesOf, checkJSON, utf8 } from './json.js';

/** JSON text, to be signed and sent as it is. */
export class RawJSON {
  constructor(text) {
    if (text instanceof Uint8Array) this.bytes = new Uint8Array(text); // a copy; slice makes none in Node's subclass
    else if (typeof text === 'string') this.bytes = wellFormed(text);
    else throw new BouncerError('payload', 'rawJSON takes a string or a Uint8Array');
  }
}

/** Marks a string or UTF-8 bytes as JSON text: `rawJSON('{"temperature":22.50}')`. */
export const rawJSON = (text) => new RawJSON(text);

function wellFormed(text) {
  // TextEncoder would silently replace an unpaired surrogate.
  const bytes = bytesOf(text);
  if (utf8(bytes) !== text) throw new BouncerError('payload', 'an unpaired surrogate');
  return bytes;
}

// JSON.stringify would write {} for these, or leave them out.
const NOT_JSON = [Map, Set, WeakMap, WeakSet, Promise, ArrayBuffer];

function refuse(key, value) {
  switch (typeof value) {
    case 'number':
      if (!Number.isFinite(value)) throw new BouncerError('payload', `${value} is not JSON`);
      return value;
    case 'undefined':
    case 'function':
    case 'symbol':
    case 'bigint':
      throw new BouncerError('payload', `${key === '' ? 'a value' : JSON.stringify(key)} of type ${typeof value} is not JSON`);
    case 'object':
      if (value === null) return value;
      if (value instanceof Number && !Number.isFinite(Number(value))) throw new BouncerError('payload', `${value} is not JSON`);
      if (ArrayBuffer.isView(value) || NOT_JSON.some((type) => value instanceof type)) {
        throw new BouncerError('payload', `an object of class ${value.constructor?.name} is not JSON`);
      }
      if (Object.getOwnPropertySymbols(value).length > 0) throw new BouncerError('payload', 'a key is a symbol');
      return value;
  }
  return value;
}

/**
 * The JSON text of a payload as bytes, checked, and without white space around it.
 * maxBytes bounds the text before it is read; depth is how deep it may be nested.
 */
export function payloadBytes(payload, maxBytes, depth) {
  let bytes;
  if (payload instanceof RawJSON) {
    bytes = payload.bytes;
  } else {
    let text;
    try {
      text = JSON.stringify(payload, refuse);
    } catch (error) {
      if (error instanceof BouncerError) throw error;
      throw new BouncerError('payload', error?.message, { cause: error }); // a cycle, a BigInt, a toJSON that throws
    }
    if (text === undefined) throw new BouncerError('payload', 'not JSON');
    bytes = bytesOf(text);
  }
  if (bytes.length > maxBytes) throw new BouncerError('too_large', `${bytes.length} bytes of payload`);
  const { start, end } = checkJSON(bytes, depth, 'payload');
  return bytes.subarray(start, end);
}
