package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// counters are those of this pod's users, in a folder that pods of this machine share, in whatever language they are:
// `examples/node/counters.mjs` and `InFolder` of `examples/gateway/counters.py` do the same.
//
// Each user has a folder, and in it one empty file, `<fence>-<count>`: the name is all there is. To write is to rename
// it, and that fails unless the file still has the name which the writer knows. So the fence is compared in the very
// step that writes, as a database does it; there is no lock that a killed pod could leave behind.
type counters struct {
	folder string
	mutex  sync.Mutex
	memory map[string]counter // by the uid, as gateways encode it
}

type counter struct {
	fence int64
	count int
}

func (c counter) String() string { return fmt.Sprintf("%d-%d", c.fence, c.count) }

var errRefused = errors.New("another pod has had the user since: this one must not act for them")

func newCounters(folder string) *counters {
	return &counters{folder: folder, memory: map[string]counter{}}
}

// add counts one more; the count then, or errRefused.
func (c *counters) add(uid string, fence int64) (int, error) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	mine, err := c.memory[uid], error(nil)
	if mine.fence != fence {
		mine, err = c.take(uid, fence)
	}
	next := counter{fence, mine.count + 1}
	if err == nil {
		err = c.rename(uid, mine, next)
	}
	if err != nil {
		delete(c.memory, uid)
		return 0, err
	}
	c.memory[uid] = next
	return next.count, nil
}

// forget drops the users whom another pod has now, or nobody.
func (c *counters) forget(isLost func(uid string) bool) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for uid := range c.memory {
		if isLost(uid) {
			delete(c.memory, uid)
		}
	}
}

// take gives what is stored, from now on under this fence: whoever has an older one can no longer write.
func (c *counters) take(uid string, fence int64) (counter, error) {
	for {
		stored, err := c.look(uid)
		if err == nil && stored.fence > fence {
			err = errRefused
		}
		if err != nil {
			return counter{}, err
		}
		mine := counter{fence, stored.count}
		if err = c.rename(uid, stored, mine); !errors.Is(err, errRefused) {
			return mine, err
		}
	}
}

func (c *counters) look(uid string) (counter, error) {
	for {
		found := counter{}
		files, err := os.ReadDir(c.of(uid))
		if err == nil && len(files) > 0 {
			_, err = fmt.Sscanf(files[0].Name(), "%d-%d", &found.fence, &found.count)
			return found, err
		}
		// None is listed if it was renamed meanwhile.
		if errors.Is(err, fs.ErrNotExist) {
			err = c.begin(uid)
		}
		if err != nil {
			return found, err
		}
	}
}

// begin makes a user's folder. It comes with its file, or not at all: it takes no place of one that holds something.
func (c *counters) begin(uid string) error {
	draft, err := os.MkdirTemp(c.folder, "draft-")
	if err != nil {
		return err
	}
	if err = os.WriteFile(filepath.Join(draft, counter{}.String()), nil, 0o600); err != nil {
		return err
	}
	if err = os.Rename(draft, c.of(uid)); err == nil {
		return nil
	}
	_ = os.RemoveAll(draft)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (c *counters) rename(uid string, from, to counter) error {
	err := os.Rename(filepath.Join(c.of(uid), from.String()), filepath.Join(c.of(uid), to.String()))
	if errors.Is(err, fs.ErrNotExist) {
		return errRefused
	}
	return err
}

// of names a user's folder by a hash: a uid may be longer than a file's name, and errors show the name.
func (c *counters) of(uid string) string {
	return filepath.Join(c.folder, fmt.Sprintf("of-%x", sha256.Sum256([]byte(uid))))
}
