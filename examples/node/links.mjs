// sfroute's links from Node.js: the same keys and the same scripts as every other program on the store, and so the same
// rules. ../../lua_scripts/README.md says what they are; the tests compare this file with the Python router.
import { createHash, randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';

export const PERSIST_FOREVER = -1;

const SCRIPTS = new URL('../../lua_scripts/', import.meta.url);
const MAX_NAME_BYTES = 512;
const MAX_PERSIST_SECONDS = 9_007_199_254_740;
// How long a write's reply is remembered: longer than ioredis may take until it sends the write once more.
const RECORD_MS = 30_000;

/** An argument breaks a rule; nothing was sent. The message never contains a uid. */
export class InvalidArgument extends Error {
  name = 'InvalidArgument';
}

/** A link or a claim holds what no pod id can be, or one that a number of JavaScript cannot hold exactly. */
export class CorruptReply extends Error {
  name = 'CorruptReply';
}

// --- scripts

const loaded = new Map();

function load(name) {
  if (!loaded.has(name)) {
    const source = readFileSync(new URL(`${name}.lua`, SCRIPTS));
    loaded.set(name, { source, sha: createHash('sha1').update(source).digest('hex') });
  }
  return loaded.get(name);
}

/** Runs a script: by its SHA1, and by its source where the node does not know it (yet, or any more). */
export async function runScript(redis, name, keys, args) {
  const { source, sha } = load(name);
  const rest = [keys.length, ...keys, ...args];
  try {
    return await redis.evalsha(sha, ...rest);
  } catch (error) {
    if (!error.message.startsWith('NOSCRIPT')) throw error;
    return await redis.eval(source, ...rest);
  }
}

// --- keys

function checkName(argument, value, forbidden) {
  if (typeof value !== 'string' || value === '') {
    throw new InvalidArgument(`${argument} must be a string, and not empty`);
  }
  if (!value.isWellFormed()) {
    throw new InvalidArgument(`${argument} must be text that UTF-8 can hold`);
  }
  if (Buffer.byteLength(value) > MAX_NAME_BYTES) {
    throw new InvalidArgument(`${argument} must be at most ${MAX_NAME_BYTES} bytes in UTF-8`);
  }
  // A brace would move the key to another slot, or alias the key of another user.
  if (forbidden.test(value)) {
    throw new InvalidArgument(`${argument} must not contain ${forbidden.source}`);
  }
}

/** The hash of a uid's persistent links, whose name begins the name of each of its links. */
function hashKey(namespace, uid) {
  checkName('namespace', namespace, /[:{}\p{Cc}]/u);
  checkName('uid', uid, /[{}\p{Cc}]/u);
  return `sf:{${namespace}:lk:${uid}}`;
}

function linkKey(namespace, uid, service) {
  const hash = hashKey(namespace, uid);
  checkName('service', service, /[{}\p{Cc}]/u);
  return hash + service;
}

/** The keys of a link, and beside it the record that says which life of which pod has claimed the uid. */
function claimKeys(namespace, uid, service) {
  const link = linkKey(namespace, uid, service);
  return [link, hashKey(namespace, uid), `sf:own:${link.slice(3)}`];
}

// --- pods and times

function checkPod(pod) {
  if (!Number.isSafeInteger(pod) || pod < 0) {
    throw new InvalidArgument('pod must be an integer from 0 to 2**53 - 1');
  }
}

function checkPersistSeconds(seconds) {
  const fits = Number.isInteger(seconds) && seconds >= 1 && seconds <= MAX_PERSIST_SECONDS;
  if (!fits && seconds !== PERSIST_FOREVER) {
    throw new InvalidArgument(`persistSeconds must be -1, or an integer from 1 to ${MAX_PERSIST_SECONDS}`);
  }
}

function checkLife(life) {
  if (typeof life !== 'string' || !/^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/.test(life)) {
    throw new InvalidArgument("life must be 1 to 64 letters, digits, '_', '.' or '-', the first a letter or digit");
  }
}

function toPod(text) {
  const pod = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(pod)) {
    throw new CorruptReply('a link holds no pod id, or one above 2**53 - 1');
  }
  return pod;
}

/** The scripts say '-1' where there is no pod; a program says null, and never takes it for pod 0. */
function toPodOrNull(text) {
  return text === '-1' ? null : toPod(text);
}

// --- the operations

/** The links, through a `Cluster` of ioredis, or a `Redis` where the store is a single node. */
export class Links {
  #redis;

  constructor(redis) {
    this.#redis = redis;
  }

  /** Links the uid to the pod, whoever had it; the previous pod, or null. */
  async setLinkedPod(namespace, uid, service, pod, persistSeconds = PERSIST_FOREVER) {
    checkPod(pod);
    checkPersistSeconds(persistSeconds);
    const [previous] = await this.#write('statefulSetLink', namespace, uid, service, [pod, persistSeconds]);
    return toPodOrNull(previous);
  }

  /** Links the uid unless a different pod holds a persistent link; whether it was done, and the owner afterwards. */
  async trySetLinkedPod(namespace, uid, service, pod, persistSeconds = PERSIST_FOREVER) {
    checkPod(pod);
    checkPersistSeconds(persistSeconds);
    const reply = await this.#write('statefulTrySetLink', namespace, uid, service, [pod, persistSeconds]);
    return { success: reply.length === 2, pod: toPod(reply[0]) }; // [pod, previous]: linked; [owner]: refused
  }

  /** Links the uid unless it is linked; the owner. `refresh` also extends a temporary link, whoever owns it. */
  async setLinkedPodIfAbsent(
    namespace, uid, service, pod, persistSeconds = PERSIST_FOREVER, { refresh = false } = {},
  ) {
    checkPod(pod);
    checkPersistSeconds(persistSeconds);
    const args = [pod, persistSeconds, refresh ? 1 : 0];
    const [owner] = await this.#write('statefulSetLinkIfAbsent', namespace, uid, service, args);
    return toPod(owner);
  }

  /** The pod, or null. */
  async getLinkedPod(namespace, uid, service) {
    const pod = await this.#redis.get(linkKey(namespace, uid, service));
    return pod === null ? null : toPod(pod);
  }

  /** The pod of a persistent link, or null. */
  async getLinkedPodIfPersist(namespace, uid, service) {
    const keys = [linkKey(namespace, uid, service)];
    const [pod] = await runScript(this.#redis, 'statefulGetLinkIfPersist', keys, []);
    return toPodOrNull(pod);
  }

  /** Every persistent link of a uid, as an object: service -> pod. */
  async getLinkService(namespace, uid) {
    const flat = await runScript(this.#redis, 'statefulGetLinkService', [hashKey(namespace, uid)], []);
    const services = flat.filter((_, index) => index % 2 === 0);
    return Object.fromEntries(services.map((service, index) => [service, toPod(flat[2 * index + 1])]));
  }

  /** Removes the link, now or after a grace period; whether there was one. */
  async removeLinkedPod(namespace, uid, service, persistSeconds = PERSIST_FOREVER) {
    checkPersistSeconds(persistSeconds);
    const [existed] = await this.#write('statefulRemoveLink', namespace, uid, service, [persistSeconds]);
    return existed === 1;
  }

  /** The same, but only if the link is the pod's: a late disconnect never removes a newer link. */
  async removeLinkedPodWithId(namespace, uid, service, { pod, persistSeconds = PERSIST_FOREVER }) {
    checkPod(pod);
    checkPersistSeconds(persistSeconds);
    const [removed] = await this.#write('statefulRemoveLinkWithId', namespace, uid, service, [persistSeconds, pod]);
    return removed === 1;
  }

  /**
   * Claims the uid for one life of a pod: { success, pod, how, fence }. `life` is a token made anew at each start of the
   * process, which the pod's state carries as `by`. Send `fence` along with every write for the uid to another store.
   */
  async claim(namespace, uid, service, pod, life) {
    checkPod(pod);
    checkLife(life);
    const reply = await this.#writeClaim('statefulClaim', namespace, uid, service, [pod, life]);
    const [owner, how, fence] = reply;
    return { success: how !== 'refused', pod: toPod(owner), how, fence: Number(fence) };
  }

  /** Whether a claim is still this life's; what the store has lost of it is mended: { held, outcome, pod, fence }. */
  async confirmClaim(namespace, uid, service, pod, life, fence) {
    checkPod(pod);
    checkLife(life);
    const keys = claimKeys(namespace, uid, service);
    const reply = await runScript(this.#redis, 'statefulConfirmClaim', keys, [service, pod, life, fence]);
    const [owner, outcome, found] = reply;
    const held = ['mine', 'restored', 'claimed'].includes(outcome);
    return { held, outcome, pod: toPodOrNull(owner), fence: Number(found) };
  }

  /** Ends a claim, now or after a grace period; whether it was this life's. Fence 0: whichever it has. */
  async releaseClaim(namespace, uid, service, pod, life, fence = 0, persistSeconds = PERSIST_FOREVER) {
    checkPod(pod);
    checkLife(life);
    checkPersistSeconds(persistSeconds);
    const args = [persistSeconds, pod, life, fence];
    const [released] = await this.#writeClaim('statefulReleaseClaim', namespace, uid, service, args);
    return released === 1;
  }

  #writeClaim(script, namespace, uid, service, args) {
    const keys = [...claimKeys(namespace, uid, service), `sf:op:{${namespace}:lk:${uid}}:${randomUUID()}`];
    return runScript(this.#redis, script, keys, [service, ...args, RECORD_MS]);
  }

  /**
   * ioredis sends a command again when its connection was lost before the reply. The third key makes that harmless: the
   * script leaves its reply there, and the same call sent again returns it and changes nothing.
   */
  #write(script, namespace, uid, service, args) {
    const keys = [
      linkKey(namespace, uid, service),
      hashKey(namespace, uid),
      `sf:op:{${namespace}:lk:${uid}}:${randomUUID()}`,
    ];
    return runScript(this.#redis, script, keys, [service, ...args, RECORD_MS]);
  }
}
