// Device ids, message ids and hexadecimal digits.
import { webCrypto } from './webcrypto.js';

export const isDeviceID = (id) => typeof id === 'string' && /^[A-Za-z0-9._:-]{1,64}$/.test(id);

export const isUUID = (id) => typeof id === 'string' && /^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$/.test(id);

/** Whether the UUID is of version 8, which is for commands. */
export const isCommandID = (id) => id[14] === '8';

export function hex(bytes) {
  let text = '';
  for (const b of bytes) text += (b >> 4).toString(16) + (b & 15).toString(16);
  return text;
}

/** The bytes of an even number of hexadecimal digits, either case; null for other text. */
export function unhex(text) {
  if (text.length % 2 !== 0 || /[^0-9a-fA-F]/.test(text)) return null;
  const bytes = new Uint8Array(text.length / 2);
  for (let i = 0; i < bytes.length; i++) bytes[i] = parseInt(text.slice(2 * i, 2 * i + 2), 16);
  return bytes;
}

/** A new random UUID of version 4. crypto.randomUUID does the same, where there is one. */
export function newMessageID() {
  const b = webCrypto().getRandomValues(new Uint8Array(16));
  b[6] = (b[6] & 0x0f) | 0x40;
  b[8] = (b[8] & 0x3f) | 0x80;
  const h = hex(b);
  return `${h.slice(0, 8)}-${h.slice(8, 12)}-${h.slice(12, 16)}-${h.slice(16, 20)}-${h.slice(20)}`;
}
