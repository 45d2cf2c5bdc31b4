// Keys in PEM and DER, as far as Ed25519 and P-256 need it.
import { BouncerError } from './errors.js';

const MAX_BYTES = 65536;
const wrong = (message) => new BouncerError('credential', message);

const ALPHABET = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/';

/** The bytes of base64. Strict: padded, no other characters, unused bits zero. */
function base64(text) {
  const m = /^([A-Za-z0-9+/]*)(={0,2})$/.exec(text);
  if (!m || text.length % 4 !== 0) throw wrong('PEM with bad base64');
  const bytes = new Uint8Array((text.length / 4) * 3 - m[2].length);
  let bits = 0, count = 0, at = 0;
  for (const c of m[1]) {
    bits = ((bits << 6) | ALPHABET.indexOf(c)) & 0xffff;
    if ((count += 6) >= 8) bytes[at++] = (bits >> (count -= 8)) & 0xff;
  }
  if (bits & ((1 << count) - 1)) throw wrong('PEM with bad base64');
  return bytes;
}

/** The blocks of a PEM text, in order, as {label, der}. Text between blocks is ignored. */
export function pemBlocks(text) {
  if (typeof text !== 'string') throw wrong('a key is PEM text');
  if (text.length > MAX_BYTES) throw wrong(`PEM longer than ${MAX_BYTES} bytes`);
  const blocks = [];
  let label = null, body = '';
  for (const line of text.split(/\r?\n/)) {
    const m = /^-----(BEGIN|END) ([A-Z0-9 ]+)-----\s*$/.exec(line);
    if (m?.[1] === 'BEGIN') {
      if (label !== null) throw wrong('PEM without an end');
      label = m[2];
      body = '';
    } else if (m) {
      if (m[2] !== label) throw wrong('PEM with an end that does not match');
      blocks.push({ label, der: base64(body) });
      label = null;
    } else if (label !== null) {
      if (/:/.test(line)) throw wrong('an encrypted private key; decrypt it first: openssl pkey -in FILE -out FILE2');
      body += line.trim();
    }
  }
  if (label !== null) throw wrong('PEM without an end');
  return blocks;
}

const bytes = (text) => Uint8Array.from(text.match(/../g), (b) => parseInt(b, 16));
const startsWith = (der, prefix) => der.length >= prefix.length && prefix.every((b, i) => der[i] === b);

// SubjectPublicKeyInfo of a key, up to the point: each key has one encoding here.
const ED25519_SPKI = bytes('302a300506032b6570032100');
const P256_SPKI = bytes('3059301306072a8648ce3d020106082a8648ce3d03010703420004');
const P256_OID = bytes('06082a8648ce3d030107');

/** What a public key in DER is for: {algorithm, spki}; algorithm is null where it is neither Ed25519 nor P-256. */
function publicKey(der) {
  if (startsWith(der, ED25519_SPKI) && der.length === 44) {
    if (isWeakEd25519(der.subarray(12))) throw wrong('an Ed25519 public key of small order or not in its one encoding');
    return { algorithm: 'Ed25519', spki: der };
  }
  if (startsWith(der, P256_SPKI) && der.length === 91) return { algorithm: 'ECDSA P-256', spki: der };
  // P-256 in another form than the uncompressed one is a mistake that should be seen, not a key of another algorithm.
  if (contains(der, P256_OID)) throw wrong('a P-256 public key whose point is compressed; openssl pkey -pubin -ec_conv_form uncompressed');
  return { algorithm: null, spki: der };
}

function contains(der, part) {
  for (let i = 0; i + part.length <= der.length; i++) if (part.every((b, k) => der[i + k] === b)) return true;
  return false;
}

/** The public keys of a PEM text, one to eight. */
export function publicKeys(text) {
  const blocks = pemBlocks(text);
  if (blocks.some((b) => b.label !== 'PUBLIC KEY')) throw wrong('not a file of public keys in PEM');
  if (blocks.length < 1 || blocks.length > 8) throw wrong(`${blocks.length} public keys; there may be 1 to 8`);
  return blocks.map((b) => publicKey(b.der));
}

/** A private key in PEM as PKCS #8 in DER. */
export function privateKey(text) {
  const blocks = pemBlocks(text).filter((b) => b.label !== 'EC PARAMETERS' && !b.label.endsWith('CERTIFICATE'));
  if (blocks.length !== 1) throw wrong('not one private key in PEM');
  const [{ label, der }] = blocks;
  if (label === 'PRIVATE KEY') return der;
  if (label === 'EC PRIVATE KEY') return wrapSEC1(der);
  if (label === 'ENCRYPTED PRIVATE KEY') throw wrong('an encrypted private key; decrypt it first: openssl pkey -in FILE -out FILE2');
  throw wrong(`PEM of type ${label}, not a private key`);
}

// openssl ecparam -genkey writes an ECPrivateKey (RFC 5915); WebCrypto takes PKCS #8 (RFC 5958) only.
function wrapSEC1(der) {
  const algorithm = bytes('301306072a8648ce3d020106082a8648ce3d030107');
  return element(0x30, concat(bytes('020100'), algorithm, element(0x04, der)));
}

function element(tag, content) {
  const n = content.length;
  const length = n < 128 ? [n] : n < 256 ? [0x81, n] : [0x82, n >> 8, n & 0xff];
  return concat([tag, ...length], content);
}

export function concat(...parts) {
  const all = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    all.set(p, at);
    at += p.length;
  }
  return all;
}

/** A big-endian number. */
export function bigint(big) {
  let n = 0n;
  for (const b of big) n = (n << 8n) | BigInt(b);
  return n;
}

const PRIME = 2n ** 255n - 19n;
// d of the curve -x² + y² = 1 + d x² y² (RFC 8032, section 5.1).
const D = 37095705934669439343138083508754565189542113879843219016388785533085940283555n;

/**
 * Whether an Ed25519 public key is of small order, so that anyone can make signatures that verify, or is not in the one encoding
 * of its point. WebCrypto need not look for these. The points of order 1, 2 and 4 have y = 1, -1 and 0; doubling one of
 * order 8 gives y = 0: d y⁴ + 2 y² - 1 = 0.
 */
function isWeakEd25519(key) {
  const little = key.slice().reverse();
  little[0] &= 0x7f; // the sign of x
  const y = bigint(little);
  if (y >= PRIME || y === 0n || y === 1n || y === PRIME - 1n) return true;
  const y2 = (y * y) % PRIME;
  return (D * y2 * y2 + 2n * y2 - 1n) % PRIME === 0n;
}
