// The Device: device/README.md, "The Device". For Node 18 or later, with mqtt.js, which the application passes in.
export * from '../src/index.node.js';
export { Delivery, Device } from './device.js';
