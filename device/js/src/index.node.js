// The core in Node: the same, with node:crypto's WebCrypto, because Node 18 has no globalThis.crypto without a flag.
import { webcrypto } from 'node:crypto';
import { useWebCrypto } from './webcrypto.js';

useWebCrypto(webcrypto);

export * from './index.js';
