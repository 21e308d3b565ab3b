// Makes the calls that come from standard input, one a line, and writes what came of each:
//
//   $ echo '["setLinkedPod", "game", "ada", "chat", 2]' | node calls.mjs 10.0.0.1:6379,10.0.0.2:6379
//   {"result":null}
import { createInterface } from 'node:readline';
import { Cluster } from 'ioredis';
import { Links } from './links.mjs';

const nodes = process.argv[2].split(',').map((address) => {
  const [host, port] = address.split(':');
  return { host, port: Number(port) };
});
const cluster = new Cluster(nodes, { redisOptions: { connectionName: 'sfroute-example' } });
const links = new Links(cluster);

async function make([method, ...args]) {
  try {
    return { result: await links[method](...args) };
  } catch (error) {
    return { error: error.name, message: error.message };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await make(JSON.parse(line))));
}
cluster.disconnect();
