// Sends what is in the outbox, and decides what becomes of it: device/README.md, "The Device".
import { performance } from 'node:perf_hooks';
import { assemble, signParts } from '../src/envelope.js';
import { hex, newMessageID, unhex } from '../src/ids.js';
import { rawJSON } from '../src/value.js';

const MAX_INFLIGHT = 16;
const NOTICE_WAIT = 2000;
const SILENT_RETRY = 2000;
const MAX_REFUSALS = 3;
const FIRST_HOLD = 1000, LONGEST_HOLD = 60_000;
const DISK_RETRY = 1000;
const MARGIN = 30; // seconds that a message may take to the gateway

const isUnsent = (e) => e.state === 'queued' && !e.unsure;

export class Sender {
  #state;
  #device;
  #link = null;
  #inflight = new Set();
  #resend = new Set(); // unsure ones, in order: sent first after a connection
  #byMessageId = new Map(); // lower case -> Entry
  #hold = null; // {delay, until, probe, timer} while the gateway asks for less
  #pauseTimer = null;
  #heldAt = -Infinity; // when the gateway last asked for a pause
  #pumping = false;
  #again = false;
  #stopped = false;
  #ended = false;
  #idle = [];

  /** device: deviceId, credential, maxMessageBytes, tolerance, whenUncertain, topicOf(kind), time(), setClock(t), finished(entry, outcome), error(e). */
  constructor(state, device) {
    this.#state = state;
    this.#device = device;
    for (const e of state.entries.values()) {
      if (!e.unsure) continue;
      this.#resend.add(e);
      this.#byMessageId.set(e.signed.messageId, e);
    }
  }

  connected(link) {
    this.#link = link;
    if (this.#hold && this.#hold.probe?.state !== 'refused') this.#hold.probe = null;
    this.wake();
  }

  disconnected() {
    this.#link = null;
    for (const e of this.#inflight) {
      e.state = 'queued';
      e.unsure = e.lost = true;
    }
    this.#inflight.clear();
    // In the order in which they came, whatever was sent again meanwhile.
    this.#resend = new Set([...this.#state.entries.values()].filter((e) => e.state === 'queued' && e.unsure));
    this.#becameIdle();
  }

  /** Stops sending, and waits for the acknowledgements of what is sent, up to a time. */
  async stop(milliseconds) {
    this.#stopped = true;
    if (this.#inflight.size > 0 || this.#pumping) {
      let timer;
      await Promise.race([
        new Promise((resolve) => { this.#idle.push(resolve); }),
        new Promise((resolve) => { timer = setTimeout(resolve, milliseconds); }),
      ]);
      clearTimeout(timer);
    }
  }

  /** Ends what still waits for a time: after it nothing has an outcome. */
  end() {
    this.#ended = true;
    clearTimeout(this.#hold?.timer);
    clearTimeout(this.#pauseTimer);
    for (const e of this.#state.entries.values()) clearTimeout(e.timer);
  }

  #becameIdle() {
    if (this.#inflight.size > 0 || this.#pumping) return;
    for (const resolve of this.#idle.splice(0)) resolve();
  }

  /** Looks again for what can be sent. */
  wake() {
    this.#again = true;
    if (this.#pumping) return;
    this.#pumping = true;
    this.#pump().catch((error) => {
      this.#device.error(error);
      this.#pause();
    }).finally(() => {
      this.#pumping = false;
      if (this.#again && !this.#stopped && this.#pauseTimer === null) this.wake();
      this.#becameIdle();
    });
  }

  async #pump() {
    while (this.#again) {
      this.#again = false;
      while (await this.#sendSome());
    }
  }

  #pause() {
    this.#pauseTimer ??= setTimeout(() => {
      this.#pauseTimer = null;
      this.wake();
    }, DISK_RETRY);
  }

  #next(room) {
    const batch = [];
    for (const e of this.#resend) {
      if (batch.length === room) return batch;
      if (e.state === 'queued') batch.push(e);
    }
    for (const e of this.#state.entries.values()) {
      if (batch.length === room) return batch;
      if (isUnsent(e)) batch.push(e);
    }
    return batch;
  }

  async #sendSome() {
    const link = this.#link;
    if (!link || this.#stopped || this.#pauseTimer !== null) return false;
    // The notice may say that the gateway still asks for less.
    if (this.#hold && (performance.now() < this.#hold.until || this.#hold.probe?.state === 'refused')) return false;
    const most = this.#hold ? 1 : Math.min(MAX_INFLIGHT, link.receiveMaximum);
    const batch = this.#next(Math.max(0, most - this.#inflight.size));
    if (batch.length === 0) return false;
    for (const e of batch) e.state = 'preparing';
    let ready, records;
    try {
      const results = await Promise.allSettled(batch.map((e) => this.#prepare(e)));
      const failed = results.find((p) => p.status === 'rejected');
      if (failed) throw failed.reason;
      ready = results.map((p) => p.value).filter((p) => p !== null);
      records = ready.map((p) => p.record);
      if (records.length > 0) await this.#state.append(records);
    } catch (error) {
      for (const e of batch) if (e.state === 'preparing') e.state = 'queued';
      throw error;
    }
    for (const { e, message } of ready) {
      this.#byMessageId.set(e.signed.messageId, e);
      if (this.#link !== link || !link.isOpen) e.state = 'queued';
      else this.#publish(link, e, message);
    }
    return this.#link === link && link.isOpen;
  }

  /** Signs what is not signed, or is too old; returns what is to be sent and its record, null where there is an outcome. */
  async #prepare(e) {
    const { deviceId, credential, maxMessageBytes, tolerance, whenUncertain } = this.#device;
    if (this.#device.topicOf(e.kind) === null) return this.#finish(e, 'refused', 'no_topic'); // an answer, and the bundle has no commands now
    const now = this.#device.time();
    if (e.signed !== null && now - e.signed.timestamp > tolerance - MARGIN) {
      if (e.lost) {
        if (whenUncertain === 'unknown') return this.#finish(e, 'unknown', '');
        e.mayBeRepeated = true;
      }
      this.#unsign(e);
    }
    if (e.signed !== null) {
      const { timestamp, messageId, signature } = e.signed;
      const message = assemble({ deviceId, timestamp, messageId, payload: e.payload, signature: unhex(signature) });
      return { e, message, record: e.record('sent', {}) };
    }
    const messageId = newMessageID();
    try {
      const { message, signature } = await signParts({
        credential, deviceId, timestamp: now, messageId, payload: rawJSON(e.payload), maxBytes: maxMessageBytes,
      });
      return { e, message, record: e.record('sign', { timestamp: now, messageId, signature: hex(signature) }) };
    } catch (error) {
      // The clock may have got more digits since the length was checked, or the setting is another one.
      if (['too_large', 'payload'].includes(error.reason)) return this.#finish(e, 'refused', error.reason);
      throw error;
    }
  }

  #unsign(e) {
    if (e.signed) this.#byMessageId.delete(e.signed.messageId);
    this.#resend.delete(e);
    e.signed = null;
    e.unsure = e.lost = false;
    e.copies = 0;
    e.notice = null;
  }

  #publish(link, e, message) {
    const topic = this.#device.topicOf(e.kind);
    // 5 bytes of fixed header, the topic with its length, the packet id, no properties.
    if (message.length + Buffer.byteLength(topic) + 10 > link.maximumPacketSize) {
      this.#finish(e, 'refused', 'mqtt 0x95');
      return;
    }
    e.state = 'inflight';
    e.sent++;
    e.copies++;
    e.sentAt = performance.now();
    this.#resend.delete(e);
    this.#inflight.add(e);
    if (this.#hold) this.#hold.probe = e;
    link.publish(topic, message, (code) => {
      if (this.#link !== link || e.state !== 'inflight') return;
      this.#acknowledged(e, code);
    });
  }

  #acknowledged(e, code) {
    this.#inflight.delete(e);
    e.unsure = false;
    if (code < 0x80) this.#finish(e, 'accepted', '');
    else if (code !== 0x87) this.#finish(e, 'refused', `mqtt 0x${code.toString(16)}`);
    else if (e.notice) this.#refused(e, e.notice.reason);
    else {
      e.state = 'refused';
      e.timer = setTimeout(() => this.#refused(e, null), NOTICE_WAIT);
    }
    this.wake();
    this.#becameIdle();
  }

  /** A notice came. It may come before the acknowledgement, after it, and later than it is waited for. */
  notice(notice) {
    const e = notice.messageId === null ? undefined : this.#byMessageId.get(notice.messageId.toLowerCase());
    if (!e || e.state === 'done') return;
    if (notice.reason === 'stale' || notice.reason === 'future') this.#device.setClock(notice.serverTime);
    if (e.state === 'refused' || e.state === 'waiting') this.#refused(e, notice.reason);
    else e.notice = notice;
  }

  #refused(e, reason) {
    if (this.#ended) return;
    clearTimeout(e.timer);
    e.timer = null;
    e.notice = null;
    const sentBefore = e.copies >= 2;
    if (reason !== 'rate_limited' && reason !== 'overloaded' && reason !== 'internal') this.#endHold(e);
    switch (reason) {
      case 'stale':
      case 'future':
        e.mayBeRepeated ||= sentBefore;
        if (++e.clockRefusals >= MAX_REFUSALS) this.#finish(e, 'refused', reason);
        else if (sentBefore && this.#device.whenUncertain === 'unknown') this.#finish(e, 'unknown', reason);
        else this.#sendAgain(e, true);
        return;
      case 'replay':
        this.#finish(e, sentBefore ? 'accepted' : 'refused', sentBefore ? '' : reason);
        return;
      case 'rate_limited':
      case 'overloaded':
      case 'internal':
        this.#heldAt = performance.now();
        this.#holdFor(e);
        this.#sendAgain(e, false);
        return;
      case null:
        // After a pause was asked for, it was refused for the same reason, whose notice was the one of that second.
        if (this.#heldAt < e.sentAt && ++e.silentRefusals >= MAX_REFUSALS) {
          this.#finish(e, 'refused', 'unspecified');
          return;
        }
        e.state = 'waiting';
        e.timer = setTimeout(() => {
          e.timer = null;
          this.#sendAgain(e, !sentBefore);
        }, SILENT_RETRY);
        return;
      default:
        this.#finish(e, 'refused', reason);
    }
  }

  /** Sends it again, signed again or the same bytes. */
  #sendAgain(e, sign) {
    if (sign) this.#unsign(e);
    e.state = 'queued';
    this.wake();
  }

  // While the gateway asks for less, one message at a time is sent, after 1 s, 2 s, ... Refusals of what was on its way already do not
  // double the time.
  #holdFor(e) {
    const hold = this.#hold;
    if (hold && hold.probe !== e) return;
    const delay = hold ? Math.min(2 * hold.delay, LONGEST_HOLD) : FIRST_HOLD;
    clearTimeout(hold?.timer);
    this.#hold = { delay, until: performance.now() + delay, probe: null, timer: null };
    this.#hold.timer = setTimeout(() => {
      if (this.#hold) this.#hold.until = 0;
      this.wake();
    }, delay);
  }

  #endHold(e) {
    if (this.#hold?.probe !== e) return;
    clearTimeout(this.#hold.timer);
    this.#hold = null;
  }

  #finish(e, outcome, reason) {
    this.#endHold(e);
    const result = {
      delivery: e.delivery, outcome, reason, messageId: e.signed?.messageId ?? null, sent: e.sent, mayBeRepeated: e.mayBeRepeated,
    };
    if (e.signed) this.#byMessageId.delete(e.signed.messageId);
    this.#resend.delete(e);
    e.state = 'done';
    // If the disk fails the message is sent again after a restart; its outcome is known all the same.
    this.#state.append([{ t: 'done', d: e.delivery }], { anyway: true })
      .catch((error) => this.#device.error(error))
      .finally(() => this.#device.finished(e, result));
    return null;
  }
}
