// Finds mqtt.js: in the directories of NODE_PATH, else where Debian has it.
import Module, { createRequire } from 'node:module';
import path from 'node:path';

const DEBIAN = '/usr/share/nodejs';

export function loadMQTT() {
  const require = createRequire(import.meta.url);
  try {
    return require('mqtt');
  } catch (error) {
    if (error.code !== 'MODULE_NOT_FOUND') throw error;
  }
  // A node that is not Debian's does not look there, and mqtt.js must find its own dependencies too.
  process.env.NODE_PATH = [process.env.NODE_PATH, DEBIAN].filter(Boolean).join(path.delimiter);
  Module._initPaths();
  return require('mqtt');
}
