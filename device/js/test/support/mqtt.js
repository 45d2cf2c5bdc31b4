// Finds mqtt.js: in the directories of NODE_PATH, else where Debian has it. A node that is not Debian's does not look there, and mqtt.js must
// find its own dependencies too.
import { createRequire } from 'node:module';

export const loadMQTT = () => createRequire(import.meta.url)('./mqtt.cjs');
