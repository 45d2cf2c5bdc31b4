// The core: values into bytes and bytes into values. No network, no file, no clock. For browsers; Node takes index.node.js.
export { BouncerError } from './errors.js';
export { useWebCrypto } from './webcrypto.js';
export { RawJSON, rawJSON } from './value.js';
export { newMessageID } from './ids.js';
export { Credential, customCredential, ed25519Credential, hmacCredential, messageVerifier, p256Credential } from './credential.js';
export { decode, MAX_MESSAGE_BYTES, sign } from './envelope.js';
export { answer, Command, CommandMemory, readNotice, verifyCommand } from './command.js';
