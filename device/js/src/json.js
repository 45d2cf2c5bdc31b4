// A strict reader of JSON over bytes. JSON.parse is not enough: it takes a name twice and unpaired surrogates, and it loses how
// numbers and strings were written, which is what is signed.
//
// It does one pass with a stack of its own, so depth costs no recursion, and time is linear in the length.
import { BouncerError } from './errors.js';

const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
const encoder = new TextEncoder();

/** The text of bytes that are UTF-8; throws a TypeError otherwise. A byte order mark stays in the text. */
export const utf8 = (bytes) => decoder.decode(bytes);

/** The bytes of a text. An unpaired surrogate becomes U+FFFD. */
export const bytesOf = (text) => encoder.encode(text);

class Bad extends Error {}
const bad = (what) => { throw new Bad(what); };

const QUOTE = 0x22, BACKSLASH = 0x5c, COMMA = 0x2c, COLON = 0x3a, MINUS = 0x2d, PLUS = 0x2b, POINT = 0x2e, ZERO = 0x30;
const OPEN_OBJECT = 0x7b, CLOSE_OBJECT = 0x7d, OPEN_ARRAY = 0x5b, CLOSE_ARRAY = 0x5d;
const LITERALS = new Map([[0x74, bytesOf('true')], [0x66, bytesOf('false')], [0x6e, bytesOf('null')]]);
const ESCAPES = new Set(bytesOf('"\\/bfnrt'));

const isDigit = (c) => c >= 0x30 && c <= 0x39;

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.at = 0;
  }

  space() {
    const { bytes } = this;
    let c;
    while ((c = bytes[this.at]) === 0x20 || c === 0x0a || c === 0x0d || c === 0x09) this.at++;
    return c; // undefined at the end
  }

  /** Passes a string and returns its range, quotes included, and whether it has an escape. */
  string() {
    const { bytes } = this;
    const start = this.at++;
    let escaped = false;
    for (;;) {
      const c = bytes[this.at];
      if (c === undefined) bad('a string has no end');
      if (c < 0x20) bad('a control character in a string');
      this.at++;
      if (c === QUOTE) return { start, end: this.at, escaped };
      if (c === BACKSLASH) {
        escaped = true;
        this.escape();
      }
    }
  }

  escape() {
    const c = this.bytes[this.at++];
    if (ESCAPES.has(c)) return;
    if (c !== 0x75) bad('an unknown escape');
    const unit = this.hex();
    if (unit >= 0xdc00 && unit <= 0xdfff) bad('an unpaired surrogate');
    if (unit >= 0xd800 && unit <= 0xdbff) {
      if (this.bytes[this.at++] !== BACKSLASH || this.bytes[this.at++] !== 0x75) bad('an unpaired surrogate');
      const low = this.hex();
      if (low < 0xdc00 || low > 0xdfff) bad('an unpaired surrogate');
    }
  }

  hex() {
    let value = 0;
    for (let i = 0; i < 4; i++) {
      const c = this.bytes[this.at++];
      const digit = isDigit(c) ? c - 0x30 : c >= 0x61 && c <= 0x66 ? c - 0x57 : c >= 0x41 && c <= 0x46 ? c - 0x37 : -1;
      if (digit < 0) bad('a short escape');
      value = value * 16 + digit;
    }
    return value;
  }

  digits() {
    if (!isDigit(this.bytes[this.at])) bad('a digit is missing');
    while (isDigit(this.bytes[this.at])) this.at++;
  }

  number() {
    const { bytes } = this;
    if (bytes[this.at] === MINUS) this.at++;
    if (bytes[this.at] === ZERO) this.at++;
    else this.digits();
    if (bytes[this.at] === POINT) {
      this.at++;
      this.digits();
    }
    if (bytes[this.at] === 0x65 || bytes[this.at] === 0x45) {
      this.at++;
      if (bytes[this.at] === PLUS || bytes[this.at] === MINUS) this.at++;
      this.digits();
    }
  }

  literal(word) {
    for (const c of word) if (this.bytes[this.at++] !== c) bad('an unknown word');
  }

  /** Passes a name and its colon, and records it. */
  name(object) {
    if (this.space() !== QUOTE) bad('a name is missing');
    const { start, end, escaped } = this.string();
    // The text that JSON.parse makes of a string that has been checked is what the name means, however it is written.
    const text = utf8(this.bytes.subarray(start, end));
    const name = escaped ? JSON.parse(text) : text.slice(1, -1);
    if (object.names.has(name)) bad('a name occurs twice');
    object.names.add(name);
    if (this.space() !== COLON) bad('a colon is missing');
    this.at++;
    if (object.members) object.members.push({ name, escaped, start: 0, end: 0 });
  }
}

/**
 * Checks that bytes are one JSON value, white space around it allowed.
 * Returns its range and, if it is an object, its members: names with escapes undone, and the ranges of their values.
 */
function check(bytes, depth) {
  try {
    utf8(bytes); // the reader then looks at ASCII alone
  } catch {
    bad('not UTF-8');
  }
  const r = new Reader(bytes);
  r.space();
  const start = r.at;
  const stack = []; // the objects and arrays around the place where the reader is
  let top = null;
  for (;;) {
    // A value begins here.
    const c = r.space();
    const around = stack[stack.length - 1];
    if (around?.members) around.members[around.members.length - 1].start = r.at;
    let open = false;
    if (c === OPEN_OBJECT || c === OPEN_ARRAY) {
      if (stack.length === depth) bad(`nested deeper than ${depth}`);
      r.at++;
      const isObject = c === OPEN_OBJECT;
      const inner = { close: isObject ? CLOSE_OBJECT : CLOSE_ARRAY, names: isObject ? new Set() : null, members: null };
      if (isObject && stack.length === 0) inner.members = top = [];
      if (r.space() === inner.close) {
        r.at++;
      } else {
        stack.push(inner);
        if (isObject) r.name(inner);
        open = true;
      }
    } else if (c === QUOTE) {
      r.string();
    } else if (c === MINUS || isDigit(c)) {
      r.number();
    } else if (LITERALS.has(c)) {
      r.literal(LITERALS.get(c));
    } else {
      bad(c === undefined ? 'a value is missing' : 'not a value');
    }
    if (open) continue;
    // A value ends here, and perhaps those around it.
    for (;;) {
      const inside = stack[stack.length - 1];
      if (inside === undefined) {
        const end = r.at;
        r.space();
        if (r.at !== bytes.length) bad('text behind the value');
        return { start, end, members: top };
      }
      if (inside.members) inside.members[inside.members.length - 1].end = r.at;
      const next = r.space();
      r.at++;
      if (next === COMMA) {
        if (inside.names) r.name(inside);
        break;
      }
      if (next !== inside.close) bad('a comma or a bracket is missing');
      stack.pop();
    }
  }
}

/** As check; throws a BouncerError with the reason where the bytes are no JSON value of at most this depth. */
export function checkJSON(bytes, depth, reason) {
  try {
    return check(bytes, depth);
  } catch (error) {
    if (error instanceof Bad) throw new BouncerError(reason, error.message);
    throw error;
  }
}

/** A number of digits alone from 0 to 2^53 - 1 without a leading zero, as a number; else -1. */
export function digitsAlone(bytes) {
  if (bytes.length === 0 || bytes.length > 16 || (bytes[0] === ZERO && bytes.length > 1)) return -1;
  let value = 0;
  for (const c of bytes) {
    if (!isDigit(c)) return -1;
    value = value * 10 + (c - ZERO); // at most 16 digits: exact to 2^53, and above it still above
  }
  return Number.isSafeInteger(value) ? value : -1;
}

/** What stands between the quotes of a string without escapes; else null. */
export function plainString(bytes) {
  if (bytes.length < 2 || bytes[0] !== QUOTE || bytes.includes(BACKSLASH)) return null;
  return utf8(bytes.subarray(1, -1));
}
