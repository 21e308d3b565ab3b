// node race.mjs COUNTERS FOLDER UID SLOT TURNS: count for a user whom other processes count for as well.
//
// Begins with a line on standard input. A turn has a fence newer than those of before, and ends when it is refused. A line
// `<fence> <count>` for each count that was acknowledged.

import { once } from 'node:events'

const [module, folder, uid, slot, turns] = process.argv.slice(2)
const { Counters } = await import(module)
const counters = new Counters(folder)
console.log('ready')
await once(process.stdin, 'data')
const acknowledged = []
for (let turn = 0; turn < Number(turns); turn += 1) {
  const fence = Date.now() * 4000 + Number(slot)
  for (let some = 0; some < 3; some += 1) {
    const count = counters.add(uid, fence)
    if (count === null) break
    acknowledged.push(`${fence} ${count}`)
  }
}
process.stdout.write(`${acknowledged.join('\n')}\n`, () => process.exit())
