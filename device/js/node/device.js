import { EventEmitter } from 'node:events';
import path from 'node:path';
import { debuglog } from 'node:util';
import '../src/index.node.js'; // sets the WebCrypto that the core uses
import { payloadRoom } from '../src/envelope.js';
import { BouncerError } from '../src/errors.js';
import { readNotice } from '../src/command.js';
import { payloadBytes } from '../src/value.js';
import { readBundle } from './bundle.js';
import { Commands } from './commands.js';
import { Connection } from './connection.js';
import { Sender } from './sender.js';
import { State } from './state.js';

// Off unless NODE_DEBUG has mosquitto-bouncer-device.
const log = debuglog('mosquitto-bouncer-device');

const FIRST_WAIT = 1000, LONGEST_WAIT = 60_000;
/** A timestamp of ten digits: what is checked by publish fits until the year 2286. */
const TEN_DIGITS = 9_999_999_999;

const DEFAULTS = {
  maxMessages: [10_000, 1, 1_000_000],
  maxBytes: [16 * 1024 * 1024, 1, 64 * 1024 * 1024],
  maxMessageBytes: [65_536, 512, 65_536 * 16],
  maxCommands: [256, 1, 4096],
  tolerance: [300, 1, 3_000_000_000],
  keepalive: [30, 1, 65_535],
  closeTimeout: [5000, 0, 600_000],
};

function settingsOf(options) {
  const settings = {};
  for (const [name, [value, least, most]] of Object.entries(DEFAULTS)) {
    settings[name] = options[name] ?? value;
    if (!Number.isSafeInteger(settings[name]) || settings[name] < least || settings[name] > most) {
      throw new RangeError(`${name} must be a whole number from ${least} to ${most}`);
    }
  }
  settings.whenUncertain = options.whenUncertain ?? 'repeat';
  if (!['repeat', 'unknown'].includes(settings.whenUncertain)) throw new RangeError('whenUncertain must be "repeat" or "unknown"');
  settings.now = options.now ?? (() => Date.now() / 1000);
  if (typeof settings.now !== 'function') throw new TypeError('now must be a function');
  return settings;
}

/** A message that is in the outbox. */
export class Delivery {
  /** @internal */
  constructor(id, outcome) {
    this.id = id;
    this.outcome = outcome;
  }
}

/** See README.md. Events: connected, disconnected, outcome, response, commandRefused, error. */
export class Device extends EventEmitter {
  #mqtt;
  #bundle;
  #settings;
  #state;
  #sender;
  #commands;
  #connection = null; // the one that is made or there
  #ready = false;
  #failures = 0;
  #timer = null;
  #started = false;
  #closing = null;
  #outcomes = new Map(); // delivery -> {resolve, reject}

  /** Called for each new command; returns {status, result}. Without it commands are answered with rejected. */
  onCommand = null;

  /** Use Device.fromBundle. */
  constructor(key, mqtt, bundle, settings, state) {
    if (key !== PRIVATE) throw new TypeError('use Device.fromBundle');
    super();
    this.#mqtt = mqtt;
    this.#bundle = bundle;
    this.#settings = settings;
    this.#state = state;
    const { deviceId, credential, topics } = bundle;
    const { maxMessageBytes, tolerance, whenUncertain } = settings;
    const error = (e) => this.#report(e);
    const time = () => this.time();
    this.#sender = new Sender(state, {
      deviceId, credential, maxMessageBytes, tolerance, whenUncertain, time, error,
      topicOf: (kind) => (kind === 'data' ? topics.data : topics.command === undefined ? null : `${topics.command}/result`),
      setClock: (serverTime) => this.#setClock(serverTime),
      finished: (entry, outcome) => this.#finished(entry, outcome),
    });
    this.#commands = new Commands(state, {
      deviceId, credential, time, error,
      handler: () => this.onCommand,
      answerRoom: () => this.#room(),
      refused: (reason) => this.#emit('commandRefused', { reason }),
      answered: () => this.#sender.wake(),
    });
  }

  /** Reads a bundle and opens the state, which is in the directory "state" of the bundle unless set. */
  static async fromBundle(directory, options = {}) {
    const mqtt = typeof options.mqtt?.connect === 'function' ? options.mqtt : options.mqtt?.default;
    if (typeof mqtt?.connect !== 'function') throw new TypeError('pass mqtt.js in the option mqtt: import mqtt from "mqtt"');
    settingsOf(options); // before a file is read
    const bundle = await readBundle(directory);
    const settings = settingsOf({ ...options, tolerance: options.tolerance ?? bundle.tolerance });
    if (bundle.topics.command === undefined) log('the gateway has no commands');
    const state = await State.open(options.state ?? path.join(directory, 'state'), {
      deviceId: bundle.deviceId, commands: settings.maxCommands, maxMessages: settings.maxMessages, maxBytes: settings.maxBytes,
    });
    if (state.cut > 0) log('%d bytes at the end of the state were damaged and are cut off', state.cut);
    return new Device(PRIVATE, mqtt, bundle, settings, state);
  }

  get deviceId() { return this.#bundle.deviceId; }

  get isConnected() { return this.#ready; }

  /** How many messages are in the outbox, answers to commands included. */
  get pending() { return this.#state.entries.size; }

  /** The time in seconds since 1970: the system's, corrected by the gateway's. */
  time() {
    // With a limit, or a notice with a time that no message can have would end all sending, and the notice that corrects it comes for a message.
    return Math.min(Math.max(0, Math.floor(this.#settings.now()) + this.#state.offset), Number.MAX_SAFE_INTEGER);
  }

  /** Connects, and goes on until close. */
  start() {
    if (this.#closing) throw new BouncerError('closed', 'make a new Device');
    if (this.#started) return;
    this.#started = true;
    this.#connect();
  }

  /**
   * Puts a message into the outbox; fulfilled when it is on the disk. payload is a value, or JSON text from rawJSON.
   * Rejects with a BouncerError: payload, too_large, outbox_full, state or closed.
   */
  async publish(payload) {
    if (this.#closing) throw new BouncerError('closed');
    const bytes = payloadBytes(payload, this.#settings.maxMessageBytes, 63);
    if (bytes.length > this.#room()) throw new BouncerError('too_large', `the message would be longer than ${this.#settings.maxMessageBytes} bytes`);
    this.#state.reserve(bytes.length);
    const record = this.#state.put('data', bytes);
    // Before the message can have an outcome.
    const outcome = new Promise((resolve, reject) => { this.#outcomes.set(record.d, { resolve, reject }); });
    outcome.catch(() => {}); // an application need not look at it
    try {
      await this.#state.append([record]);
    } catch (error) {
      this.#outcomes.delete(record.d);
      this.#state.free(bytes.length);
      throw error;
    }
    this.#sender.wake();
    return new Delivery(record.d, outcome);
  }

  /**
   * Ends the connection and frees the state directory. Waits up to closeTimeout for acknowledgements and for the command that is
   * being executed. What has no outcome stays in the outbox.
   */
  close() {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close() {
    clearTimeout(this.#timer);
    const { closeTimeout } = this.#settings;
    await Promise.all([this.#sender.stop(this.#ready ? closeTimeout : 0), this.#commands.stop(closeTimeout)]);
    await this.#connection?.end();
    this.#connection = null;
    this.#sender.end();
    if (this.#ready) {
      this.#ready = false;
      this.#sender.disconnected();
      this.#emit('disconnected');
    }
    await this.#state.close();
    for (const { reject } of this.#outcomes.values()) reject(new BouncerError('closed', 'the message stays in the outbox'));
    this.#outcomes.clear();
  }

  #room() {
    const { deviceId, credential } = this.#bundle;
    return payloadRoom({ credential, deviceId, timestamp: Math.max(this.time(), TEN_DIGITS), maxBytes: this.#settings.maxMessageBytes });
  }

  #connect() {
    const { topics } = this.#bundle;
    const connection = new Connection(this.#mqtt, this.#bundle, {
      keepalive: this.#settings.keepalive,
      topics: [topics.rejected, topics.command, topics.response].filter((topic) => topic !== undefined),
      handlers: {
        ready: () => {
          this.#failures = 0;
          this.#ready = true;
          this.#emit('connected');
          this.#sender.connected(connection);
        },
        message: (topic, bytes) => this.#message(topic, bytes),
        subscriptionRefused: (topic, code) => this.#report(new BouncerError('subscription', `the broker refuses ${topic}: ${code}`)),
        closed: (error) => this.#disconnected(error),
      },
    });
    this.#connection = connection;
  }

  #disconnected(error) {
    this.#connection = null;
    if (this.#ready) {
      this.#ready = false;
      this.#sender.disconnected();
      this.#emit('disconnected', error);
    } else {
      const { host, port } = this.#bundle;
      this.#report(new BouncerError('connection', `cannot connect to ${host}, port ${port}: ${error?.message}`, { cause: error }));
    }
    if (this.#closing) return;
    const wait = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** Math.min(this.#failures++, 16));
    this.#timer = setTimeout(() => this.#connect(), wait * (1 - Math.random() / 2));
  }

  #message(topic, bytes) {
    const { topics } = this.#bundle;
    if (topic === topics.command) {
      // An error of a function of the application that verifies: the command is not taken, and can come again.
      return this.#commands.take(bytes).catch((error) => this.#report(error));
    }
    if (topic === topics.rejected) {
      const notice = readNotice(bytes);
      if (notice) this.#sender.notice(notice);
      else log('something that is no notice on the rejected topic');
    } else if (topic === topics.response) {
      this.#emit('response', new TextDecoder().decode(bytes));
    }
    return undefined;
  }

  #setClock(serverTime) {
    const offset = serverTime - Math.floor(this.#settings.now());
    if (offset === this.#state.offset) return;
    log('the clock is corrected by %d s', offset);
    this.#state.append([{ t: 'offset', offset }], { anyway: true }).catch((error) => this.#report(error));
    this.#state.offset = offset; // for what is signed before it is on the disk
  }

  #finished(entry, outcome) {
    if (entry.kind === 'answer') {
      log('answer to command %s: %s %s', entry.commandId, outcome.outcome, outcome.reason);
      if (outcome.outcome !== 'accepted') {
        this.#report(new BouncerError('answer', `the answer to command ${entry.commandId} is ${outcome.outcome} (${outcome.reason})`));
      }
      this.#commands.wake();
      return;
    }
    this.#outcomes.get(outcome.delivery)?.resolve(outcome);
    this.#outcomes.delete(outcome.delivery);
    this.#emit('outcome', outcome);
  }

  #report(error) {
    if (this.#closing && error?.reason === 'closed') return;
    // The text of other errors is the application's, and that of "payload" names what is in a result.
    log('%s', error instanceof BouncerError && error.reason !== 'payload' ? error.message : (error?.reason ?? 'an error of the application'));
    // Without a listener an EventEmitter throws an "error". What is reported here is no reason to end a process: the Device goes on.
    if (this.listenerCount('error') > 0) this.#emit('error', error);
  }

  #emit(name, ...values) {
    log('%s', name);
    try {
      this.emit(name, ...values);
    } catch (error) {
      // The application's mistake, to be seen as any other, and not to break off what the Device is doing.
      setImmediate(() => { throw error; });
    }
  }
}

const PRIVATE = Symbol('Device.fromBundle');
