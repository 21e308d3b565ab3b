// Users' counters in a folder that pods of this machine share, in whatever language they are: `examples/go/counters.go` and
// `InFolder` of `examples/gateway/counters.py` do the same.
//
// Each user has a folder, and in it one empty file, `<fence>-<count>`: the name is all there is. To write is to rename it, and
// that fails unless the file still has the name which the writer knows. So the fence is compared in the very step that
// writes, as a database does it; there is no lock that a killed pod could leave behind.

import crypto from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'

const nameOf = ({ fence, count }) => `${fence}-${count}`

/** The counters of this pod's users. Uids are as gateways encode them. */
export class Counters {
  #folder
  #memory = new Map() // uid -> { fence, count }

  constructor(folder) {
    this.#folder = folder
  }

  /** One more; the count then. Null if another pod has had the user since: this one must not act for them. */
  add(uid, fence) {
    const known = this.#memory.get(uid)
    const mine = known?.fence === fence ? known : this.#take(uid, fence)
    const next = mine && { fence, count: mine.count + 1 }
    if (next && this.#rename(uid, mine, next)) {
      this.#memory.set(uid, next)
      return next.count
    }
    this.#memory.delete(uid)
    return null
  }

  /** The user is another pod's now, or nobody's. */
  forget(uid) {
    this.#memory.delete(uid)
  }

  forgetAll() {
    this.#memory.clear()
  }

  // What is stored, from now on under this fence: whoever has an older one can no longer write. Null: a newer one is there.
  #take(uid, fence) {
    for (;;) {
      const stored = this.#look(uid)
      if (stored.fence > fence) return null
      const mine = { fence, count: stored.count }
      if (this.#rename(uid, stored, mine)) return mine
    }
  }

  #look(uid) {
    for (;;) {
      let names
      try {
        names = fs.readdirSync(this.#of(uid))
      } catch (error) {
        if (error.code !== 'ENOENT') throw error
        this.#begin(uid)
        continue
      }
      // None is listed if it was renamed meanwhile.
      if (names.length > 0) {
        const [fence, count] = names[0].split('-').map(Number)
        return { fence, count }
      }
    }
  }

  // A folder comes with its file, or not at all: it takes no place of one that holds something.
  #begin(uid) {
    const draft = fs.mkdtempSync(path.join(this.#folder, 'draft-'))
    fs.writeFileSync(path.join(draft, nameOf({ fence: 0, count: 0 })), '')
    try {
      fs.renameSync(draft, this.#of(uid))
    } catch (error) {
      if (!['ENOTEMPTY', 'EEXIST'].includes(error.code)) throw error
      fs.rmSync(draft, { recursive: true })
    }
  }

  #rename(uid, from, to) {
    try {
      fs.renameSync(path.join(this.#of(uid), nameOf(from)), path.join(this.#of(uid), nameOf(to)))
      return true
    } catch (error) {
      if (error.code !== 'ENOENT') throw error
      return false
    }
  }

  #of(uid) {
    // A hash: a uid may be longer than a file's name, and errors show the name.
    return path.join(this.#folder, `of-${crypto.createHash('sha256').update(uid).digest('hex')}`)
  }
}
