/** What this library throws. `reason` does not change; README.md lists the reasons. */
export declare class BouncerError extends Error {
  readonly reason: string;
  constructor(reason: string, message?: string, options?: { cause?: unknown });
}

/** Sets the WebCrypto object to use in place of globalThis.crypto. */
export declare function useWebCrypto(crypto: object | undefined): void;

/** JSON text, to be signed and sent as it is. */
export declare class RawJSON {
  readonly bytes: Uint8Array;
  constructor(text: string | Uint8Array);
}
export declare function rawJSON(text: string | Uint8Array): RawJSON;

/** A new random UUID of version 4. */
export declare function newMessageID(): string;

export type Algorithm = 'HMAC-SHA256' | 'Ed25519' | 'ECDSA P-256';

/** Signs messages and verifies commands. */
export declare class Credential {
  private constructor();
  readonly algorithm: Algorithm;
  readonly signatureBytes: 32 | 64;
  sign(bytes: Uint8Array): Promise<Uint8Array>;
  verifyCommand(signature: Uint8Array, bytes: Uint8Array): Promise<boolean>;
}

export interface Keys {
  /** PEM text (PKCS #8, or SEC 1 for P-256), or a CryptoKey that may sign. */
  privateKey: string | object;
  /** The gateway's public keys in PEM, one to eight. Without one no command is good. */
  commandKeys?: string | string[] | null;
}

export interface CustomKeys {
  algorithm: 'Ed25519' | 'ECDSA P-256';
  /** Returns a signature of 64 bytes: r || s for P-256. */
  sign(bytes: Uint8Array): Uint8Array | Promise<Uint8Array>;
  commandKeys?: string | string[] | null;
  /** In place of commandKeys: whether the gateway's signature is good. */
  verify?(signature: Uint8Array, bytes: Uint8Array): boolean | Promise<boolean>;
}

export declare function hmacCredential(secrets: string | Uint8Array | Array<string | Uint8Array>): Promise<Credential>;
export declare function ed25519Credential(keys: Keys): Promise<Credential>;
export declare function p256Credential(keys: Keys): Promise<Credential>;
export declare function customCredential(keys: CustomKeys): Promise<Credential>;

/** A device's public key in PEM, as the gateway verifies messages with it. */
export declare function messageVerifier(pem: string): Promise<(signature: Uint8Array, bytes: Uint8Array) => Promise<boolean>>;

export interface Message {
  credential: Credential;
  deviceId: string;
  /** Seconds since 1970. */
  timestamp: number;
  /** A UUID, not of version 8, never used before. */
  messageId: string;
  /** A value, or JSON text from rawJSON. */
  payload: unknown;
  /** 65536 unless set. */
  maxBytes?: number;
}

export declare const MAX_MESSAGE_BYTES: 65536;

/** Makes the message to publish. Reasons: device_id, timestamp, message_id, payload, too_large. */
export declare function sign(message: Message): Promise<Uint8Array>;

export interface Envelope {
  deviceId: string;
  timestamp: number;
  messageId: string;
  /** As sent. */
  payload: Uint8Array;
  signature: Uint8Array;
  /** What the signature is over. */
  signed: Uint8Array;
}

/** Reads an envelope, and verifies nothing. Reason: malformed. */
export declare function decode(bytes: Uint8Array, maxBytes?: number): Envelope;

/** A command that was verified. */
export declare class Command {
  private constructor();
  readonly id: string;
  readonly timestamp: number;
  readonly expires: number;
  /** Its JSON text as sent. */
  readonly text: string;
  /** What JSON.parse makes of the text. */
  readonly value: any;
}

export interface ReceivedCommand {
  credential: Credential;
  deviceId: string;
  message: Uint8Array;
  /** The time in seconds since 1970; absent without a clock. */
  now?: number;
}

/** Reasons: malformed, foreign, forged, expired. */
export declare function verifyCommand(received: ReceivedCommand): Promise<Command>;

export interface SavedMemory {
  floor: number;
  commands: Array<[string, number]>;
}

export declare class CommandMemory {
  constructor(capacity?: number);
  readonly capacity: number;
  readonly floor: number;
  readonly size: number;
  /** Remembers a new command. Save the memory before you execute it. */
  check(id: string, expires: number): 'new' | 'repeated' | 'expired';
  /** What check would return. */
  peek(id: string, expires: number): 'new' | 'repeated' | 'expired';
  has(id: string): boolean;
  toJSON(): SavedMemory;
  static fromJSON(saved: unknown, capacity?: number): CommandMemory;
}

export type Status = 'succeeded' | 'failed' | 'rejected';

/** The payload of an answer, for rawJSON. Reasons: message_id, status, payload, too_large. */
export declare function answer(commandId: string, status: Status, result?: unknown, maxBytes?: number): Uint8Array;

export interface Notice {
  messageId: string | null;
  reason: string;
  serverTime: number;
}

/** Reads a notice of the rejected topic; null if it is none. */
export declare function readNotice(bytes: Uint8Array): Notice | null;
