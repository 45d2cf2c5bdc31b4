// The signed message, version 1 (docs/envelope.md).
import { Credential } from './credential.js';
import { BouncerError } from './errors.js';
import { hex, isCommandID, isDeviceID, isUUID, unhex } from './ids.js';
import { bytesOf, checkJSON, digitsAlone, plainString } from './json.js';
import { concat } from './pem.js';
import { payloadBytes } from './value.js';

/** The longest message, in bytes, unless set. */
export const MAX_MESSAGE_BYTES = 65536;
/** How deep a message may be nested, its own object counted. */
const MAX_DEPTH = 64;

/** The message without its payload, for the lengths that are known. */
function frame(deviceId, timestamp, messageId) {
  return `{"device_id":"${deviceId}","timestamp":${timestamp},"message_id":"${messageId}","payload":`;
}

/** How many bytes of payload a message can have. */
export function payloadRoom({ credential, deviceId, timestamp, maxBytes = MAX_MESSAGE_BYTES }) {
  return maxBytes - frame(deviceId, timestamp, '0'.repeat(36)).length - (',"signature":""}'.length + 2 * credential.signatureBytes);
}

/** Checks what is signed, in the order of the specification; returns the payload's bytes. */
function check({ credential, deviceId, timestamp, messageId, payload, maxBytes = MAX_MESSAGE_BYTES }) {
  if (!(credential instanceof Credential)) throw new BouncerError('credential', 'no Credential');
  if (!Number.isSafeInteger(maxBytes) || maxBytes < 1) throw new BouncerError('too_large', 'maxBytes must be a whole number');
  if (!isDeviceID(deviceId)) throw new BouncerError('device_id', 'not 1 to 64 of A-Z a-z 0-9 . _ : -');
  if (!Number.isSafeInteger(timestamp) || timestamp < 0) throw new BouncerError('timestamp', 'not 0 to 9007199254740991');
  if (!isUUID(messageId)) throw new BouncerError('message_id', 'not a UUID of 36 characters');
  if (isCommandID(messageId)) throw new BouncerError('message_id', 'a UUID of version 8, which is for commands');
  // White space around the payload is not sent, and does not count.
  const room = payloadRoom({ credential, deviceId, timestamp, maxBytes });
  const bytes = payloadBytes(payload, Math.max(maxBytes, 0), MAX_DEPTH - 1);
  if (bytes.length > room) throw new BouncerError('too_large', `the message would be longer than ${maxBytes} bytes`);
  return bytes;
}

const signedBytes = (deviceId, timestamp, messageId, payload) => concat(bytesOf(`${deviceId}${timestamp}${messageId}`), payload);

/** The bytes of a message whose signature is known: signing again would give other bytes with ECDSA. */
export function assemble({ deviceId, timestamp, messageId, payload, signature }) {
  return concat(bytesOf(frame(deviceId, timestamp, messageId)), payload, bytesOf(`,"signature":"${hex(signature)}"}`));
}

/** As sign, and returns the signature and the payload's bytes too. */
export async function signParts(message) {
  const payload = check(message);
  const { credential, deviceId, messageId } = message;
  const timestamp = message.timestamp + 0; // -0 is 0
  const signature = await credential.sign(signedBytes(deviceId, timestamp, messageId, payload));
  return { payload, signature, message: assemble({ deviceId, timestamp, messageId, payload, signature }) };
}

/**
 * The bytes of a message to publish. payload is a value, or JSON text from rawJSON.
 * Throws a BouncerError: device_id, timestamp, message_id, payload or too_large.
 */
export async function sign(message) {
  return (await signParts(message)).message;
}

const MEMBERS = ['device_id', 'timestamp', 'message_id', 'payload', 'signature'];

/**
 * Reads an envelope. Throws a BouncerError with the reason malformed.
 * payload is the bytes as sent, signed what the signature is over.
 */
export function decode(bytes, maxBytes = MAX_MESSAGE_BYTES) {
  const malformed = (why) => new BouncerError('malformed', why);
  if (!(bytes instanceof Uint8Array)) throw malformed('a message is a Uint8Array');
  if (bytes.length > maxBytes) throw malformed(`longer than ${maxBytes} bytes`);
  const { members } = checkJSON(bytes, MAX_DEPTH, 'malformed');
  if (members === null) throw malformed('not an object');
  if (members.length !== MEMBERS.length) throw malformed('not exactly the five members');
  const found = {};
  for (const { name, escaped, start, end } of members) {
    // Names are unique, and five: each is there if none is unknown.
    if (escaped || !MEMBERS.includes(name)) throw malformed('not exactly the five members');
    found[name] = bytes.subarray(start, end);
  }
  const deviceId = plainString(found.device_id);
  if (!isDeviceID(deviceId)) throw malformed('device_id');
  const timestamp = digitsAlone(found.timestamp);
  if (timestamp < 0) throw malformed('timestamp');
  const messageId = plainString(found.message_id);
  if (!isUUID(messageId)) throw malformed('message_id');
  const digits = plainString(found.signature);
  const signature = digits !== null && (digits.length === 64 || digits.length === 128) ? unhex(digits) : null;
  if (signature === null) throw malformed('signature');
  return { deviceId, timestamp, messageId, payload: found.payload, signature, signed: signedBytes(deviceId, timestamp, messageId, found.payload) };
}
