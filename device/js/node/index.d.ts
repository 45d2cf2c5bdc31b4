import { BouncerError, Command, Status } from '../src/index.js';
export * from '../src/index.js';

/** What the Device needs of mqtt.js, 4.3 or 5: `import mqtt from 'mqtt'`. */
export type MQTT = { connect: (...options: any[]) => any } | { default: { connect: (...options: any[]) => any } };

export interface Options {
  mqtt: MQTT;
  /** The state directory; the directory "state" in the bundle unless set. */
  state?: string;
  /** The outbox: 10000 messages unless set. */
  maxMessages?: number;
  /** The outbox: 16 MiB of payloads unless set. */
  maxBytes?: number;
  /** The longest message: 65536 bytes unless set. */
  maxMessageBytes?: number;
  /** How many commands are remembered: 256 unless set. */
  maxCommands?: number;
  /** The gateway's tolerance in seconds: that of the bundle, or 300, unless set. */
  tolerance?: number;
  /** What happens to a message of which the gateway may have a copy that can no longer be sent again: signed again ("repeat", unless set). */
  whenUncertain?: 'repeat' | 'unknown';
  /** The keep-alive: 30 s unless set. */
  keepalive?: number;
  /** How long close waits: 5000 ms unless set. */
  closeTimeout?: number;
  /** The system's time in seconds since 1970. */
  now?: () => number;
}

export interface Outcome {
  delivery: number;
  outcome: 'accepted' | 'refused' | 'unknown';
  /** "" if accepted. */
  reason: string;
  messageId: string | null;
  /** How often the message was sent. */
  sent: number;
  mayBeRepeated: boolean;
}

/** A message that is in the outbox. */
export declare class Delivery {
  private constructor();
  /** The same after a restart. */
  readonly id: number;
  /** Rejects with the reason closed if the Device is closed before. */
  readonly outcome: Promise<Outcome>;
}

export interface Answer {
  status: Status;
  /** A value, or JSON text from rawJSON. */
  result?: unknown;
}

export interface Events {
  connected: () => void;
  disconnected: (error?: Error) => void;
  outcome: (outcome: Outcome) => void;
  response: (text: string) => void;
  commandRefused: (refusal: { reason: 'malformed' | 'foreign' | 'forged' | 'expired' | 'repeated' }) => void;
  error: (error: Error | BouncerError) => void;
}

/** An EventEmitter of node:events; these are the methods that are typed here. */
export declare class Device {
  private constructor();
  static fromBundle(directory: string, options: Options): Promise<Device>;
  onCommand: ((command: Command) => Answer | Promise<Answer>) | null;
  readonly deviceId: string;
  readonly isConnected: boolean;
  readonly pending: number;
  time(): number;
  start(): void;
  publish(payload: unknown): Promise<Delivery>;
  close(): Promise<void>;
  on<E extends keyof Events>(event: E, listener: Events[E]): this;
  once<E extends keyof Events>(event: E, listener: Events[E]): this;
  off<E extends keyof Events>(event: E, listener: Events[E]): this;
  removeAllListeners(event?: keyof Events): this;
  listenerCount(event: keyof Events): number;
}
