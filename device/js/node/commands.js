// Takes commands, one at a time: verified, remembered on the disk, executed, answered.
import { answer, verifyCommand } from '../src/command.js';
import { BouncerError } from '../src/errors.js';
import { bytesOf } from '../src/json.js';

/** How many commands wait for their turn; the gateway has at most 256 unfinished ones for a device. */
const MAX_WAITING = 256;
/** How many answers are in the outbox, beyond what the application has there. */
const MAX_ANSWERS = 256;
const MAX_ERROR_TEXT = 1024;
const STATUSES = ['succeeded', 'failed', 'rejected'];

/** The text of what a handler threw, cut off, and without unpaired surrogates, which JSON must not have. */
function errorText(error) {
  let text;
  try {
    text = String(error instanceof Error ? error.message : error);
  } catch {
    text = 'the handler failed';
  }
  return new TextDecoder().decode(bytesOf(text.slice(0, MAX_ERROR_TEXT)));
}

export class Commands {
  #state;
  #device;
  #waiting = [];
  #ids = new Set(); // of those that wait or are being executed
  #running = null;
  #stopped = false;

  /** device: deviceId, credential, time(), handler(), answerRoom(), refused(reason), answered(), error(e). */
  constructor(state, device) {
    this.#state = state;
    this.#device = device;
  }

  /** Verifies a message of the command topic, and puts the command into the queue. */
  async take(message) {
    const { credential, deviceId } = this.#device;
    let command;
    try {
      command = await verifyCommand({ credential, deviceId, message, now: this.#device.time() });
    } catch (error) {
      if (!['malformed', 'foreign', 'forged', 'expired'].includes(error?.reason)) throw error;
      this.#device.refused(error.reason);
      return;
    }
    const id = command.id.toLowerCase();
    if (this.#ids.has(id)) {
      this.#device.refused('repeated'); // its answer is on the way
    } else if (this.#waiting.length >= MAX_WAITING) {
      // It is not remembered, so it can be executed when the gateway sends it again.
      this.#device.error(new BouncerError('busy', `${MAX_WAITING} commands wait; command ${command.id} is left to be sent again`));
    } else if (!this.#stopped) {
      this.#ids.add(id);
      this.#waiting.push(command);
      this.wake();
    }
  }

  get #canRun() {
    return this.#waiting.length > 0 && !this.#stopped && this.#state.answersQueued.size < MAX_ANSWERS;
  }

  /** Looks again for what can be executed. */
  wake() {
    if (!this.#canRun) return;
    this.#running ??= this.#run().finally(() => {
      this.#running = null;
      this.wake(); // for what came between the end of the loop and here
    });
  }

  async #run() {
    await null;
    while (this.#canRun) {
      const command = this.#waiting.shift();
      try {
        await this.#handle(command);
      } catch (error) {
        this.#device.error(error);
      } finally {
        this.#ids.delete(command.id.toLowerCase());
      }
    }
  }

  async #handle(command) {
    const { id, expires } = command;
    const verdict = this.#state.memory.peek(id, expires);
    if (verdict === 'repeated') {
      this.#device.refused('repeated');
      await this.#answerAgain(id);
      return;
    }
    // It may have waited for others.
    if (verdict === 'expired' || this.#device.time() >= expires) {
      this.#device.refused('expired');
      return;
    }
    await this.#state.append([{ t: 'command', id, expires }]);
    await this.#answer(id, await this.#execute(command));
  }

  /** Calls the handler; returns the answer's payload. */
  async #execute(command) {
    const handler = this.#device.handler();
    let status = 'rejected', result;
    if (handler) {
      try {
        ({ status, result } = (await handler(command)) ?? {});
        if (!STATUSES.includes(status)) status = 'failed';
      } catch (error) {
        [status, result] = ['failed', errorText(error)];
      }
    }
    const room = this.#device.answerRoom();
    try {
      return answer(command.id, status, result, room);
    } catch (error) {
      // The result is no JSON, or too large.
      this.#device.error(error);
      return Commands.#failed(command.id, errorText(error), room);
    }
  }

  static #failed(id, text, room) {
    try {
      return answer(id, 'failed', text, room);
    } catch {
      return answer(id, 'failed'); // the limit of a message is set very low, or what was thrown has very many characters to escape
    }
  }

  async #answer(id, payload) {
    // In one frame of the log: either both are there or none.
    await this.#state.append([{ t: 'answer', id, bytes: payload }, this.#state.put('answer', payload, id)]);
    this.#device.answered();
  }

  async #answerAgain(id) {
    const key = id.toLowerCase();
    if (this.#state.answersQueued.has(key)) return; // it is being sent
    const payload = this.#state.answers.get(key);
    if (payload === undefined) {
      // An earlier process ended while it executed the command.
      await this.#answer(id, answer(id, 'failed', 'interrupted'));
      return;
    }
    await this.#state.append([this.#state.put('answer', payload, id)]);
    this.#device.answered();
  }

  /** Takes no more commands, and waits for the one that is being executed, up to a time. What waits was not remembered. */
  async stop(milliseconds) {
    this.#stopped = true;
    if (this.#running === null) return;
    let timer;
    await Promise.race([this.#running, new Promise((resolve) => { timer = setTimeout(resolve, milliseconds); })]);
    clearTimeout(timer);
  }
}
