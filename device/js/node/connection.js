// One connection: a client of mqtt.js that is made for it and thrown away with it. mqtt.js neither reconnects nor sends anything
// again: reconnectPeriod is 0, and its store is empty when it starts. It works with mqtt.js 4.3 and 5.

/** The largest packet that the broker may send. A command has at most 66560 bytes, a response 128 KiB. */
const MAX_PACKET = 1 << 20;
const SESSION_SECONDS = 3600;
/** From CONNACK to the last SUBACK. mqtt.js has a limit until CONNACK only. */
const SUBSCRIBE_WAIT = 30_000;

const hexCode = (code) => `0x${code.toString(16).padStart(2, '0')}`;

export class Connection {
  #client = null;
  #over = false;
  #handlers;
  #timer = null;

  receiveMaximum = 65535;
  maximumPacketSize = Infinity;

  /**
   * handlers: ready() after the subscriptions; message(topic, bytes), whose promise delays the acknowledgement;
   * subscriptionRefused(topic, code); closed(error), once.
   */
  constructor(mqtt, bundle, { keepalive, topics, handlers, subscribeWait = SUBSCRIBE_WAIT }) {
    this.#handlers = handlers;
    let client;
    try {
      client = mqtt.connect({
        protocol: 'mqtts',
        protocolVersion: 5,
        host: bundle.host,
        port: bundle.port,
        ca: bundle.ca, // in place of the system's
        cert: bundle.certificate,
        key: bundle.key,
        rejectUnauthorized: true, // also verifies the host's name
        minVersion: 'TLSv1.2',
        clientId: bundle.deviceId,
        clean: false,
        properties: { sessionExpiryInterval: SESSION_SECONDS, maximumPacketSize: MAX_PACKET },
        keepalive,
        reschedulePings: false,
        reconnectPeriod: 0,
        connectTimeout: 30_000,
        resubscribe: false,
        queueQoSZero: false,
      });
    } catch (error) {
      queueMicrotask(() => this.#finish(error)); // a key or certificate that cannot be read
      return;
    }
    this.#client = client;
    client.on('error', (error) => this.#finish(error));
    client.on('close', () => this.#finish(new Error('the connection was closed')));
    client.on('disconnect', (packet) => this.#finish(new Error(`the broker closed the connection: ${hexCode(packet?.reasonCode ?? 0)}`)));
    client.once('connect', (connack) => { this.#subscribe(connack, topics, subscribeWait).catch((error) => this.#finish(error)); });
    // mqtt.js acknowledges a message of QoS 1 when done is called.
    client.handleMessage = (packet, done) => {
      Promise.resolve()
        .then(() => (this.#over ? undefined : handlers.message(String(packet.topic), new Uint8Array(packet.payload))))
        .then(() => done(), (error) => this.#finish(error));
    };
  }

  async #subscribe(connack, topics, wait) {
    const { receiveMaximum, maximumPacketSize } = connack?.properties ?? {};
    if (receiveMaximum > 0) this.receiveMaximum = receiveMaximum;
    if (maximumPacketSize > 0) this.maximumPacketSize = maximumPacketSize;
    if (this.#over) return;
    this.#timer = setTimeout(() => this.#finish(new Error('the broker did not answer a subscription in time')), wait);
    // Each by itself: mqtt.js 4 and 5 report differently that one topic of several was refused.
    await Promise.all(topics.map((topic) => new Promise((resolve) => {
      this.#client.subscribe(topic, { qos: 1 }, (error, granted) => {
        const code = error ? error.code : granted?.[0]?.qos;
        if (Number.isInteger(code) && code >= 0x80) this.#handlers.subscriptionRefused(topic, hexCode(code));
        else if (error) this.#finish(error);
        resolve();
      });
    })));
    clearTimeout(this.#timer);
    if (!this.#over) this.#handlers.ready();
  }

  get isOpen() { return !this.#over && this.#client?.connected === true; }

  /** Publishes at QoS 1. acknowledged(code) is called with the PUBACK's reason code; not at all if the connection ends first. */
  publish(topic, bytes, acknowledged) {
    let first = true; // mqtt.js 4 calls back twice for a refused message
    this.#client.publish(topic, Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length), { qos: 1, retain: false }, (error) => {
      if (!first || this.#over) return;
      first = false;
      if (!error) acknowledged(0);
      else if (Number.isInteger(error.code) && error.code >= 0x80) acknowledged(error.code);
      else this.#finish(error);
    });
  }

  /** Sends DISCONNECT and closes; the session stays on the broker. */
  async end() {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    const client = this.#client;
    if (client === null) return;
    await new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        resolve();
      };
      const timer = setTimeout(() => {
        client.stream?.destroy();
        resolve();
      }, 1000);
      client.once('close', done);
      if (client.connected) {
        client.outgoing = {}; // end would wait for acknowledgements, without a limit
        client.end(false, done);
      } else {
        client.end(true, done);
      }
    });
  }

  #finish(error) {
    if (this.#over) return;
    this.#over = true;
    clearTimeout(this.#timer);
    this.#client?.end(true);
    this.#handlers.closed(error);
  }
}
