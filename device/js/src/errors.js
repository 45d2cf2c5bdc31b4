/**
 * What this library throws. `reason` is one of the words of the specification (device/README.md) or of this package's README,
 * and does not change; `message` is for people.
 */
export class BouncerError extends Error {
  constructor(reason, message, options) {
    super(message === undefined ? reason : `${reason}: ${message}`, options);
    this.name = 'BouncerError';
    this.reason = reason;
  }
}
