// Where WebCrypto comes from: globalThis.crypto, or what useWebCrypto was given. Node 18 has no globalThis.crypto without a flag,
// so index.node.js gives node:crypto's.
import { BouncerError } from './errors.js';

let given;

/** Sets the WebCrypto object that the library uses in place of globalThis.crypto. */
export function useWebCrypto(crypto) {
  given = crypto;
}

export function webCrypto() {
  const crypto = given ?? globalThis.crypto;
  if (!crypto?.subtle) {
    throw new BouncerError('unsupported', 'there is no WebCrypto here; a browser has it on pages from https: or localhost only');
  }
  return crypto;
}
