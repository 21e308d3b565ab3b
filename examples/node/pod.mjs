// A pod in Node.js that counts the requests of each user. `sfroute agent` speaks for it:
//
//     sfroute agent --pod 0 --health http://127.0.0.1:8080/healthz -- node pod.mjs 8080 /var/lib/counters
//
// It serves a user only if the agent says that this pod has them. Counts are kept in a folder that all pods share
// (counters.mjs), and are written under the fence of the user's claim. Nothing is installed.

import http from 'node:http'

import { Counters } from './counters.mjs'

const [port, folder] = [Number(process.argv[2]), process.argv[3]]
const agent = process.env.SFROUTE_AGENT
const connections = new http.Agent({ keepAlive: true })
const counters = new Counters(folder)
let leaving = false

function call(method, where) {
  const at = agent.startsWith('unix:') ? { socketPath: agent.slice(5) } : { ...split(agent) }
  return new Promise((resolve, reject) => {
    const asking = http.request({ ...at, method, path: where, agent: connections }, (answer) => {
      let text = ''
      answer.on('data', (some) => { text += some })
      answer.on('end', () => resolve({ status: answer.statusCode, headers: answer.headers, body: JSON.parse(text) }))
      answer.on('error', reject)
    })
    asking.on('error', reject).end()
  })
}

function split(url) {
  const { hostname, port } = new URL(url)
  return { hostname, port }
}

async function serve(uid) {
  const claim = await call('PUT', `/claims/${uid}`)
  if (claim.status !== 200) return claim
  const count = counters.add(uid, claim.body.fence)
  if (count === null) return { ...claim, status: 409 } // another pod has had the user since
  return { status: 200, body: { count, pod: claim.body.pod, language: 'node' } }
}

// The gateway follows a 421 to the owner. Its headers are the agent's.
function answerTo(result, response) {
  const headers = { 'content-type': 'application/json', ...(leaving && { connection: 'close' }) }
  if (result.status === 200) return response.writeHead(200, headers).end(`${JSON.stringify(result.body)}\n`)
  for (const name of ['x-sfroute-service', 'x-sfroute-owner', 'x-sfroute-full']) {
    if (result.headers[name] !== undefined) headers[name] = result.headers[name]
  }
  return response.writeHead(result.status === 409 ? 421 : 503, headers).end('{}\n')
}

const server = http.createServer((request, response) => {
  const uid = request.headers['x-sfroute-uid']
  if (request.url === '/healthz') return response.end('well\n')
  if (!uid || !/^[\w.~%-]+$/.test(uid)) return response.writeHead(400).end()
  return serve(uid).then((result) => answerTo(result, response), () => response.writeHead(503).end())
})

// What this pod loses it forgets. The stream begins anew where it ended.
function listen(after) {
  const at = agent.startsWith('unix:') ? { socketPath: agent.slice(5) } : split(agent)
  let last = after
  let rest = ''
  const again = () => setTimeout(listen, 200, last)
  http.get({ ...at, path: `/events?after=${after}` }, (stream) => {
    stream.setEncoding('utf8')
    stream.on('data', (some) => {
      const events = (rest + some).split('\n\n')
      rest = events.pop()
      for (const event of events) {
        const field = (name) => event.match(new RegExp(`^${name}: (.*)$`, 'm'))?.[1]
        last = Number(field('id') ?? last)
        if (field('event') === 'lost') counters.forget(encodeURIComponent(JSON.parse(field('data')).uid))
        if (['failed', 'superseded', 'missed'].includes(field('event'))) counters.forgetAll()
      }
    })
    stream.on('close', again)
  }).on('error', again)
}

// The agent has drained before it sends this. What is under way is answered.
process.on('SIGTERM', () => {
  leaving = true
  server.close(() => process.exit(0))
  server.closeIdleConnections()
})
server.keepAliveTimeout = 75_000
server.listen(port, '127.0.0.1', () => listen(0))
