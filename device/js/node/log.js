// A log file of frames, each with a check, on the disk before append returns.
//
// A frame is:
//
//	4 bytes   0xff 'M' 'B' 'D'     0xff is in no UTF-8, so this is at the begin of a frame only
//	4 bytes   length of the body, most significant byte first
//	8 bytes   the first of SHA-256(length || body)
//	body      records: each a line of JSON, with "bytes":N if N bytes and a newline follow it
//
// The file begins with a snapshot, which has its name only when it is complete and synced: its last record is {"t":"snapshot"}. A file
// without it was damaged, and is an error: what was executed would be forgotten.
//
// Behind it, one frame is written and synced at a time. So a crash damages the last frame at most: what is there behind the last good frame is
// cut off when the log is opened. A good frame behind a bad one means that the disk has lost what was synced: an error.
import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { open, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { BouncerError } from '../src/errors.js';

const MAGIC = Buffer.from([0xff, 0x4d, 0x42, 0x44]);
const HEADER = 16;
const MAX_FILE = 512 * 1024 * 1024;
/** A snapshot is written in frames of about this many bytes. */
const SNAPSHOT_FRAME = 1 << 20;
const END_OF_SNAPSHOT = 'snapshot';
const NEWLINE = Buffer.from('\n');

const damaged = (file, why) => new BouncerError('state', `${file} is damaged: ${why}`);

function checkOf(length, body) {
  return createHash('sha256').update(length).update(body).digest().subarray(0, 8);
}

/** The bytes of one frame. A record is an object, with its payload, if there is one, in the property bytes. */
export function encodeFrame(records) {
  const parts = [];
  for (const { bytes, ...record } of records) {
    if (bytes === undefined) parts.push(Buffer.from(`${JSON.stringify(record)}\n`));
    else parts.push(Buffer.from(`${JSON.stringify({ ...record, bytes: bytes.length })}\n`), bytes, NEWLINE);
  }
  const body = Buffer.concat(parts);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(body.length);
  return Buffer.concat([MAGIC, length, checkOf(length, body), body]);
}

/** The frame at a place as {body, end}; null where there is no good one. */
function frameAt(data, at) {
  if (at + HEADER > data.length || !data.subarray(at, at + 4).equals(MAGIC)) return null;
  const length = data.subarray(at + 4, at + 8);
  const end = at + HEADER + length.readUInt32BE();
  if (end > data.length) return null;
  const body = data.subarray(at + HEADER, end);
  return checkOf(length, body).equals(data.subarray(at + 8, at + HEADER)) ? { body, end } : null;
}

function* recordsOf(body) {
  for (let at = 0; at < body.length;) {
    const end = body.indexOf(0x0a, at);
    const record = JSON.parse(body.toString('utf8', at, end < 0 ? body.length : end));
    at = end < 0 ? body.length : end + 1;
    if (record.bytes !== undefined) {
      const next = at + record.bytes;
      if (!Number.isSafeInteger(record.bytes) || record.bytes < 0 || next >= body.length) throw new Error('a record is cut off');
      record.bytes = new Uint8Array(body.subarray(at, next)); // a copy, so that the file's buffer can go
      at = next + 1;
    }
    yield record;
  }
}

/** Reads the frames of a file's bytes. Returns the records and where the last good frame ends. */
export function decodeLog(data, file) {
  const records = [];
  let at = 0;
  for (let frame; (frame = frameAt(data, at)) !== null; at = frame.end) {
    try {
      for (const record of recordsOf(frame.body)) records.push(record);
    } catch (error) {
      throw damaged(file, `the frame at byte ${at} has a good check and is unreadable (${error.message}); another version wrote it?`);
    }
  }
  for (let next = at; (next = data.indexOf(MAGIC, next + 1)) >= 0;) {
    if (frameAt(data, next)) throw damaged(file, `bytes ${at} to ${next} are lost, and what follows them is good; keep a copy, and remove the file to start without it`);
  }
  return { records, end: at };
}

async function writeAll(handle, buffer, position) {
  for (let done = 0; done < buffer.length;) {
    const { bytesWritten } = await handle.write(buffer, done, buffer.length - done, position + done);
    if (bytesWritten === 0) throw new Error('the file system wrote nothing');
    done += bytesWritten;
  }
}

async function syncDirectory(directory) {
  const handle = await open(directory, constants.O_RDONLY);
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * The log. Its user holds what the records say in memory, and gives it back as the records of snapshot(): they replace the file
 * when it has grown, or after a write that failed, because the file's end is unknown then.
 */
export class Log {
  #file;
  #snapshot;
  #handle = null;
  #end = 0;
  #base = 0; // the length after the last snapshot
  #rewrite = true;
  #waiting = [];
  #running = null;
  #closed = false;

  constructor(file, snapshot) {
    this.#file = file;
    this.#snapshot = snapshot;
  }

  /** Opens the file, calls apply for each record, and cuts off a damaged end. Returns how many bytes were cut off. */
  async open(apply) {
    await rm(`${this.#file}.new`, { force: true }); // of a snapshot that was not finished
    let cut = 0;
    let handle;
    try {
      handle = await open(this.#file, constants.O_RDWR);
    } catch (error) {
      if (error.code !== 'ENOENT') throw error;
    }
    if (handle) {
      try {
        const { size } = await handle.stat();
        if (size > MAX_FILE) throw damaged(this.#file, `it has ${size} bytes`);
        const { records, end } = decodeLog(await handle.readFile(), this.#file);
        if (!records.some((record) => record.t === END_OF_SNAPSHOT)) {
          throw damaged(this.#file, 'its beginning is not complete; keep a copy, and remove the file to start without it');
        }
        for (const record of records) if (record.t !== END_OF_SNAPSHOT) apply(record);
        cut = size - end;
      } finally {
        await handle.close();
      }
    }
    // A fresh snapshot is a file without a damaged end, shows at once whether the directory can be written, and is small.
    await this.#write([]);
    return cut;
  }

  get size() { return this.#end; }

  /**
   * Puts records on the disk as one frame, all or none, and then calls apply for each. Appends that come while one is being
   * written share the next frame. Records with anyway are applied even if they could not be written: the next snapshot has
   * their effect.
   */
  append(records, apply, { anyway = false } = {}) {
    return new Promise((resolve, reject) => {
      if (this.#closed) {
        reject(new BouncerError('closed'));
        return;
      }
      this.#waiting.push({ records, apply, anyway, resolve, reject });
      this.#wake();
    });
  }

  #wake() {
    this.#running ??= this.#run().finally(() => {
      this.#running = null;
      // What came between the end of the loop and here.
      if (this.#waiting.length > 0) this.#wake();
    });
  }

  async #run() {
    await null; // what is appended in the same turn is one frame
    while (this.#waiting.length > 0) {
      const batch = this.#waiting;
      this.#waiting = [];
      let failure = null;
      try {
        await this.#write(batch.flatMap((b) => b.records));
      } catch (error) {
        this.#rewrite = true;
        failure = new BouncerError('state', `cannot write ${this.#file}: ${error.message}`, { cause: error });
      }
      for (const { records, apply, anyway, resolve, reject } of batch) {
        if (failure === null || anyway) for (const record of records) apply(record);
        if (failure === null) resolve();
        else reject(failure);
      }
    }
  }

  async #write(records) {
    const isLong = this.#end > 2 * this.#base + (1 << 20);
    if (this.#rewrite || isLong) await this.#replace();
    if (records.length === 0) return;
    const frame = encodeFrame(records);
    if (this.#end + frame.length > MAX_FILE) throw new Error('the file is full');
    await writeAll(this.#handle, frame, this.#end);
    await this.#handle.datasync();
    this.#end += frame.length;
  }

  /** Writes a snapshot to a new file, syncs it, and puts it in the old one's place. */
  async #replace() {
    const name = `${this.#file}.new`;
    const handle = await open(name, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600);
    let end = 0;
    try {
      let records = [], size = 0;
      const flush = async () => {
        const frame = encodeFrame(records);
        await writeAll(handle, frame, end);
        end += frame.length;
        records = [];
        size = 0;
      };
      for (const record of this.#snapshot()) {
        records.push(record);
        size += 100 + (record.bytes?.length ?? 0);
        if (size > SNAPSHOT_FRAME) await flush();
      }
      records.push({ t: END_OF_SNAPSHOT });
      await flush();
      await handle.sync();
      await rename(name, this.#file);
      await syncDirectory(path.dirname(this.#file));
    } catch (error) {
      await handle.close().catch(() => {});
      throw error;
    }
    await this.#handle?.close().catch(() => {});
    this.#handle = handle;
    this.#end = this.#base = end;
    this.#rewrite = false;
  }

  /** Waits for what is being written, and closes the file. Appends after this fail. */
  async close() {
    this.#closed = true;
    while (this.#running) await this.#running;
    await this.#handle?.close().catch(() => {});
    this.#handle = null;
  }
}
