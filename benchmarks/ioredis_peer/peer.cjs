// Reads orders, one JSON object a line, from stdin; answers each with the seconds it took. See ../ioredis.py.
const { Cluster } = require("ioredis");
const readline = require("node:readline");

const nodes = JSON.parse(process.argv[2]).map(([host, port]) => ({ host, port }));
const cluster = new Cluster(nodes, { enableAutoPipelining: true });

async function work({ keys, concurrency }) {
  let next = 0;
  async function worker() {
    while (next < keys.length) await cluster.get(keys[next++]);
  }
  const began = process.hrtime.bigint();
  await Promise.all(Array.from({ length: concurrency }, worker));
  return Number(process.hrtime.bigint() - began) / 1e9;
}

cluster.once("ready", async () => {
  console.log("ready");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    console.log(await work(JSON.parse(line)));
  }
  cluster.disconnect();
});
