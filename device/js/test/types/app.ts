// A program that uses the API, for the TypeScript compiler alone.
import { Device, Outcome, rawJSON, BouncerError } from 'mosquitto-bouncer-device/node';
import {
  answer, Command, CommandMemory, customCredential, ed25519Credential, hmacCredential, newMessageID, readNotice, sign, verifyCommand,
} from 'mosquitto-bouncer-device';

declare const mqtt: { connect(options: object): object };

export async function main(): Promise<number> {
  const device = await Device.fromBundle('sensor_001', { mqtt, state: 'state', whenUncertain: 'unknown' });
  device.onCommand = async (command: Command) => ({ status: 'succeeded', result: { seconds: command.value.seconds } });
  device.on('outcome', (o: Outcome) => { if (o.outcome === 'refused') throw new Error(o.reason); });
  device.on('error', (error) => { if (error instanceof BouncerError) throw new Error(error.reason); });
  device.start();
  const delivery = await device.publish(rawJSON('{"temperature":22.50}'));
  const { sent, mayBeRepeated } = await delivery.outcome;
  await device.close();
  return mayBeRepeated ? 0 : sent;
}

export async function core(message: Uint8Array): Promise<Uint8Array> {
  const credential = await hmacCredential(['new', 'old']);
  const command = await verifyCommand({ credential, deviceId: 'sensor_001', message, now: 5 });
  const memory = CommandMemory.fromJSON(JSON.parse('{}'));
  const verdict: 'new' | 'repeated' | 'expired' = memory.check(command.id, command.expires);
  const payload = rawJSON(answer(command.id, 'rejected', verdict));
  await ed25519Credential({ privateKey: 'PEM', commandKeys: ['PEM'] });
  await customCredential({ algorithm: 'ECDSA P-256', sign: (bytes) => bytes, verify: async () => true });
  const notice = readNotice(message);
  return sign({ credential, deviceId: 'sensor_001', timestamp: notice?.serverTime ?? 0, messageId: newMessageID(), payload });
}

// @ts-expect-error a status that is none
answer('id', 'done');
// @ts-expect-error without mqtt.js
Device.fromBundle('sensor_001', {});
// @ts-expect-error no such event
((device: Device) => device.on('connect', () => {}));
// @ts-expect-error a secret is no number
hmacCredential(5);
