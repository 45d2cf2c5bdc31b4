// What a Device keeps: the outbox, the memory of commands with their answers, and the clock's offset. All of it is in memory, and
// what it takes to make it again is in the log.
import { mkdir } from 'node:fs/promises';
import path from 'node:path';
import { CommandMemory } from '../src/command.js';
import { BouncerError } from '../src/errors.js';
import { lock } from './lock.js';
import { Log } from './log.js';

const FORMAT = 1;

/** A message of the outbox. */
class Entry {
  constructor({ d, kind, id, bytes }) {
    this.delivery = d;
    this.kind = kind; // 'data' or 'answer'
    this.commandId = id; // of an answer
    this.payload = bytes;
    this.signed = null; // {timestamp, messageId, signature: hex} of what was sent last
    this.mayBeRepeated = false;
    this.sent = 0; // how often anything of it was sent
    this.copies = 0; // how often these signed bytes were sent
    this.clockRefusals = 0; // stale or future
    this.silentRefusals = 0; // without a notice
    this.recorded = { sent: 0, copies: 0 }; // what the log has of these
    // What follows is not kept.
    this.state = 'queued'; // preparing, inflight, refused, waiting, done
    this.unsure = false; // the last copy was sent and has no acknowledgement: sent again first
    this.lost = false; // of these signed bytes a copy was sent and never acknowledged
    this.notice = null;
    this.timer = null;
  }

  /** The record of what is about to be sent: counted as sent already, for it may be when this is read. */
  record(t, signed) {
    return {
      t, d: this.delivery, ...signed, rep: this.mayBeRepeated, sent: this.sent + 1, copies: this.copies + 1,
      clock: this.clockRefusals, silent: this.silentRefusals,
    };
  }
}

export class State {
  #log;
  #release;
  #deviceId;
  #reserved = { messages: 0, bytes: 0 };
  #loading = true;

  entries = new Map(); // delivery -> Entry, in order
  answers = new Map(); // command id in lower case -> payload
  answersQueued = new Set(); // ids of the commands whose answers are in the outbox
  offset = 0;
  memory;
  nextDelivery = 1;
  cut = 0;

  /** Opens the state in a directory, which is made where there is none. */
  static async open(directory, { deviceId, commands, maxMessages, maxBytes }) {
    await mkdir(directory, { recursive: true, mode: 0o700 });
    const state = new State();
    state.#deviceId = deviceId;
    state.limits = { messages: maxMessages, bytes: maxBytes };
    state.memory = new CommandMemory(commands);
    state.#release = await lock(directory);
    try {
      state.#log = new Log(path.join(directory, 'state.log'), () => state.#snapshot());
      state.cut = await state.#log.open((record) => state.#apply(record));
    } catch (error) {
      await state.#log?.close();
      await state.#release();
      if (error instanceof BouncerError) throw error;
      throw new BouncerError('state', `${directory}: ${error.message}`, { cause: error });
    }
    for (const e of state.entries.values()) {
      e.sent = e.recorded.sent;
      if (e.signed === null) continue;
      e.unsure = e.lost = true;
      e.copies = e.recorded.copies;
    }
    state.#loading = false;
    return state;
  }

  /** Room for one more message of the application; throws a BouncerError, outbox_full, where there is none. */
  reserve(bytes) {
    const { messages, bytes: most } = this.limits;
    if (this.#reserved.messages + 1 > messages || this.#reserved.bytes + bytes > most) {
      throw new BouncerError('outbox_full', `${this.#reserved.messages} messages, ${this.#reserved.bytes} bytes`);
    }
    this.#reserved.messages++;
    this.#reserved.bytes += bytes;
  }

  /** Gives back what reserve took, of a message that was not put into the outbox. */
  free(bytes) {
    this.#reserved.messages--;
    this.#reserved.bytes -= bytes;
  }

  append(records, options) {
    return this.#log.append(records, (record) => this.#apply(record), options);
  }

  put(kind, payload, commandId) {
    return { t: 'put', d: this.nextDelivery++, kind, id: commandId, bytes: payload };
  }

  #apply(r) {
    switch (r.t) {
      case 'device':
        if (r.format !== FORMAT) throw new BouncerError('state', `it has format ${r.format}, and this version knows ${FORMAT}`);
        if (r.device_id !== this.#deviceId) throw new BouncerError('state', `it is of device ${r.device_id}, not of ${this.#deviceId}`);
        break;
      case 'next':
        this.nextDelivery = r.d;
        break;
      case 'offset':
        this.offset = r.offset;
        break;
      case 'memory':
        this.memory = CommandMemory.fromJSON(r, this.memory.capacity);
        break;
      case 'command':
        this.memory.check(r.id, r.expires);
        for (const id of this.answers.keys()) if (!this.memory.has(id)) this.answers.delete(id);
        break;
      case 'answer':
        if (this.memory.has(r.id)) this.answers.set(r.id.toLowerCase(), r.bytes);
        break;
      case 'put': {
        const e = new Entry(r);
        this.entries.set(e.delivery, e);
        this.nextDelivery = Math.max(this.nextDelivery, e.delivery + 1);
        if (e.kind === 'answer') this.answersQueued.add(e.commandId.toLowerCase());
        else if (this.#loading) {
          // More than the limits, if they were higher, is kept.
          this.#reserved.messages++;
          this.#reserved.bytes += e.payload.length;
        }
        break;
      }
      case 'sign': {
        const e = this.entries.get(r.d);
        if (!e) break; // it is done
        e.signed = { timestamp: r.timestamp, messageId: r.messageId, signature: r.signature };
        e.copies = 0;
        this.#counts(e, r);
        break;
      }
      case 'sent': {
        const e = this.entries.get(r.d);
        if (e) this.#counts(e, r);
        break;
      }
      case 'done': {
        const e = this.entries.get(r.d);
        if (!e) break;
        this.entries.delete(r.d);
        if (e.kind === 'answer') this.answersQueued.delete(e.commandId.toLowerCase());
        else this.free(e.payload.length);
        break;
      }
      default:
        throw new BouncerError('state', `it has a record of type ${r.t}, which this version does not know`);
    }
  }

  #counts(e, r) {
    e.mayBeRepeated = r.rep;
    e.recorded = { sent: r.sent, copies: r.copies };
    e.clockRefusals = r.clock;
    e.silentRefusals = r.silent;
  }

  * #snapshot() {
    yield { t: 'device', format: FORMAT, device_id: this.#deviceId };
    yield { t: 'next', d: this.nextDelivery };
    yield { t: 'offset', offset: this.offset };
    yield { t: 'memory', ...this.memory.toJSON() };
    for (const [id, bytes] of this.answers) yield { t: 'answer', id, bytes };
    for (const e of this.entries.values()) {
      yield { t: 'put', d: e.delivery, kind: e.kind, id: e.commandId, bytes: e.payload };
      const sent = Math.max(e.recorded.sent, e.sent);
      if (e.signed !== null) yield { ...e.record('sign', e.signed), sent, copies: Math.max(e.recorded.copies, e.copies) };
      else if (sent > 0) yield { ...e.record('sent', {}), sent };
    }
  }

  get size() { return this.#log.size; }

  async close() {
    await this.#log.close();
    await this.#release();
  }
}
