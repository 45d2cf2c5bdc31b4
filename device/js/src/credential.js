// What a device signs with, and what it verifies commands with.
import { BouncerError } from './errors.js';
import { bytesOf, utf8 } from './json.js';
import { bigint, concat, privateKey, publicKeys } from './pem.js';
import { webCrypto } from './webcrypto.js';

const wrong = (message, options) => new BouncerError('credential', message, options);

/** How WebCrypto calls each algorithm. */
const ALGORITHMS = {
  'Ed25519': { key: { name: 'Ed25519' }, use: { name: 'Ed25519' } },
  'ECDSA P-256': { key: { name: 'ECDSA', namedCurve: 'P-256' }, use: { name: 'ECDSA', hash: 'SHA-256' } },
};
export const ALGORITHM_NAMES = ['HMAC-SHA256', ...Object.keys(ALGORITHMS)];

/** The order of P-256 and half of it. */
const N = 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n;
const HALF_N = N >> 1n;

async function subtle(what, work) {
  try {
    return await work(webCrypto().subtle);
  } catch (error) {
    if (error instanceof BouncerError) throw error;
    if (error?.name === 'NotSupportedError') {
      throw new BouncerError('unsupported', `WebCrypto has no ${what} here; give functions that sign and verify`, { cause: error });
    }
    throw wrong(`WebCrypto refuses the key for ${what}`, { cause: error });
  }
}

/** Signs and verifies. Made by hmacCredential, ed25519Credential, p256Credential or customCredential. */
export class Credential {
  #sign;
  #verify;

  /** @internal */
  constructor(algorithm, sign, verify) {
    this.algorithm = algorithm;
    this.signatureBytes = algorithm === 'HMAC-SHA256' ? 32 : 64;
    this.#sign = sign;
    this.#verify = verify;
    Object.freeze(this);
  }

  /** The signature of bytes. */
  async sign(bytes) {
    const signature = await this.#sign(bytes);
    if (!(signature instanceof Uint8Array) || signature.length !== this.signatureBytes) {
      throw wrong(`the function that signs must return a Uint8Array of ${this.signatureBytes} bytes`);
    }
    return this.algorithm === 'ECDSA P-256' ? lowS(signature) : signature;
  }

  /** Whether a signature of a command is good. */
  async verifyCommand(signature, bytes) {
    if (signature.length !== this.signatureBytes) return false;
    if (this.algorithm === 'ECDSA P-256' && !isLowS(signature)) return false;
    return (await this.#verify(signature, bytes)) === true;
  }
}

/** Of the two signatures (r, s) and (r, n - s) of the same bytes the one that the gateway accepts. */
function lowS(signature) {
  const s = bigint(signature.subarray(32));
  if (s <= HALF_N) return signature;
  const low = (N - s).toString(16).padStart(64, '0');
  return concat(signature.subarray(0, 32), Uint8Array.from(low.match(/../g), (b) => parseInt(b, 16)));
}

const isLowS = (signature) => bigint(signature.subarray(32)) <= HALF_N;

/** Whether one of the verifiers takes the signature. All are asked, so that the time does not tell which one did. */
async function anyOf(verifiers, signature, bytes) {
  const answers = await Promise.all(verifiers.map((verify) => verify(signature, bytes)));
  return answers.includes(true);
}

// The white space of docs/envelope.md, and that of Unicode. NUL bytes fill up the key of an HMAC: NUL alone is the empty key.
function isBlank(secret) {
  let text;
  try {
    text = utf8(secret);
  } catch {
    return secret.every((b) => b === 0 || b === 0x20 || (b >= 0x09 && b <= 0x0d));
  }
  return /^[\0\s\x85]*$/.test(text);
}

/** A shared secret, or several: the first signs, each verifies. Strings are taken as UTF-8. */
export async function hmacCredential(secrets) {
  const list = Array.isArray(secrets) ? secrets : [secrets];
  if (list.length < 1 || list.length > 8) throw wrong(`${list.length} secrets; there may be 1 to 8`);
  const keys = [];
  for (const secret of list) {
    const bytes = typeof secret === 'string' ? bytesOf(secret) : secret;
    // It would become U+FFFD, and another secret the same.
    if (typeof secret === 'string' && utf8(bytes) !== secret) throw wrong('a secret has an unpaired surrogate');
    if (!(bytes instanceof Uint8Array)) throw wrong('a secret is a string or a Uint8Array');
    if (bytes.length > 65536) throw wrong('a secret is longer than 65536 bytes');
    if (isBlank(bytes)) throw wrong('a secret is empty, only NUL bytes or only white space');
    keys.push(await subtle('HMAC', (s) => s.importKey('raw', bytes, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign', 'verify'])));
  }
  // subtle.verify compares in constant time.
  const verifiers = keys.map((key) => (signature, bytes) => webCrypto().subtle.verify('HMAC', key, signature, bytes));
  return new Credential(
    'HMAC-SHA256',
    async (bytes) => new Uint8Array(await webCrypto().subtle.sign('HMAC', keys[0], bytes)),
    (signature, bytes) => anyOf(verifiers, signature, bytes),
  );
}

/** A private key for Ed25519. */
export const ed25519Credential = (keys) => keyCredential('Ed25519', keys);

/** A private key for ECDSA on P-256 with SHA-256. */
export const p256Credential = (keys) => keyCredential('ECDSA P-256', keys);

async function keyCredential(algorithm, { privateKey: key, commandKeys }) {
  const { key: type, use } = ALGORITHMS[algorithm];
  let signer = key;
  if (typeof key === 'string') {
    const der = privateKey(key);
    signer = await subtle(algorithm, (s) => s.importKey('pkcs8', der, type, false, ['sign']));
  }
  if (signer?.type !== 'private' || signer.algorithm?.name !== type.name || signer.algorithm.namedCurve !== type.namedCurve) {
    throw wrong(`not a private key for ${algorithm}: PEM text or a CryptoKey`);
  }
  const verifiers = await commandVerifiers(algorithm, commandKeys);
  return new Credential(
    algorithm,
    async (bytes) => new Uint8Array(await webCrypto().subtle.sign(use, signer, bytes)),
    (signature, bytes) => anyOf(verifiers, signature, bytes),
  );
}

/**
 * A credential whose private key the application has elsewhere, as in a secure element, or whose algorithm WebCrypto has not.
 * sign(bytes) returns the signature, of P-256 as r || s. Commands are verified with commandKeys, or with verify(signature, bytes).
 */
export async function customCredential({ algorithm, sign, commandKeys, verify }) {
  if (!Object.hasOwn(ALGORITHMS, algorithm)) throw wrong('algorithm must be "Ed25519" or "ECDSA P-256"');
  if (typeof sign !== 'function') throw wrong('sign must be a function');
  if (verify !== undefined) {
    if (typeof verify !== 'function') throw wrong('verify must be a function');
    if (commandKeys !== undefined) throw wrong('give commandKeys or verify, not both');
    return new Credential(algorithm, async (bytes) => sign(bytes), async (signature, bytes) => verify(signature, bytes));
  }
  const verifiers = await commandVerifiers(algorithm, commandKeys);
  return new Credential(algorithm, async (bytes) => sign(bytes), (signature, bytes) => anyOf(verifiers, signature, bytes));
}

/** Verifiers for the gateway's keys that are of the device's algorithm; the others are ignored. */
async function commandVerifiers(algorithm, pem) {
  if (pem === undefined || pem === null) return [];
  const keys = publicKeys(Array.isArray(pem) ? pem.join('\n') : pem).filter((k) => k.algorithm === algorithm);
  return Promise.all(keys.map(({ spki }) => verifierFor(algorithm, spki)));
}

async function verifierFor(algorithm, spki) {
  const { key: type, use } = ALGORITHMS[algorithm];
  const key = await subtle(algorithm, (s) => s.importKey('spki', spki, type, false, ['verify']));
  return (signature, bytes) => webCrypto().subtle.verify(use, key, signature, bytes);
}

/** A public key in PEM that verifies messages of a device, as the gateway does: a function of signature and bytes. */
export async function messageVerifier(pem) {
  const [key, ...more] = publicKeys(pem);
  if (more.length > 0 || key.algorithm === null) throw wrong('not one public key, Ed25519 or P-256');
  const verify = await verifierFor(key.algorithm, key.spki);
  return async (signature, bytes) => {
    if (signature.length !== 64 || (key.algorithm === 'ECDSA P-256' && !isLowS(signature))) return false;
    return verify(signature, bytes);
  };
}
