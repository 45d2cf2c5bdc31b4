// Runs the vectors in a context that has, as a browser, no require, no process and no Buffer. Prints the result.
// node --experimental-vm-modules test/support/without-node.js
import assert from 'node:assert/strict';
import { webcrypto } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import vm from 'node:vm';

const file = (name) => new URL(name, import.meta.url);
const names = ['importKey', 'sign', 'verify'];
const crypto = {
  subtle: Object.fromEntries(names.map((name) => [name, (...values) => webcrypto.subtle[name](...values)])),
  getRandomValues: (array) => webcrypto.getRandomValues(array),
};
// Arrays are Node's, because its WebCrypto takes no others.
const context = vm.createContext({ crypto, TextEncoder, TextDecoder, Uint8Array });

const modules = new Map();
function load(url) {
  if (!modules.has(url.href)) {
    modules.set(url.href, readFile(url, 'utf8').then((text) => new vm.SourceTextModule(text, { context, identifier: url.href })));
  }
  return modules.get(url.href);
}

async function open(name) {
  const module = await load(file(name));
  await module.link((specifier, from) => {
    assert.match(specifier, /^\.\.?\//, `${from.identifier} imports ${specifier}`);
    return load(new URL(specifier, from.identifier));
  });
  await module.evaluate();
  return module.namespace;
}

const api = await open('../../src/index.js');
const { runVectors } = await open('./vectors.js');
const doc = JSON.parse(await readFile(file('../../../vectors/device-v1.json'), 'utf8'));
const globals = vm.runInContext('[typeof process, typeof require, typeof Buffer, typeof setTimeout].join(" ")', context);
process.stdout.write(JSON.stringify({ globals, ...(await runVectors(api, doc)) }));
