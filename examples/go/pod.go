// A pod in Go that counts the requests of each user. `sfroute agent` speaks for it:
//
//	sfroute agent --pod 1 --health http://127.0.0.1:8081/healthz -- ./pod 8081 /var/lib/counters
//
// It serves a user only if the agent says that this pod has them. Counts are kept in a folder that all pods share, each
// with the fence of the claim under which it was written, and are read when a user comes here. Only Go's own packages.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// As gateways encode uids: fit for a path, and for the name of a file.
var encoded = regexp.MustCompile(`^[\w.~%-]+$`)

type counter struct {
	Count int   `json:"count"`
	Fence int64 `json:"fence"`
}

type claim struct {
	Pod   int   `json:"pod"`
	Fence int64 `json:"fence"`
}

type pod struct {
	agent  string // a URL without a path
	client *http.Client
	folder string

	mutex  sync.Mutex
	counts map[string]*counter // by the uid as the gateway encodes it
}

func newPod(agent, folder string) *pod {
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	if path, isUnix := strings.CutPrefix(agent, "unix:"); isUnix {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		agent = "http://agent"
	}
	return &pod{agent: agent, client: &http.Client{Transport: transport}, folder: folder, counts: map[string]*counter{}}
}

// accept claims a user. The answer's headers are those of a 421 if another pod has the user.
func (p *pod) accept(ctx context.Context, uid string) (*claim, *http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, p.agent+"/claims/"+uid, nil)
	if err != nil {
		return nil, nil, err
	}
	answer, err := p.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		return nil, answer, err
	}
	found := &claim{}
	return found, answer, json.Unmarshal(body, found)
}

func (p *pod) load(uid string) (counter, error) {
	stored := counter{}
	text, err := os.ReadFile(filepath.Join(p.folder, "of-"+uid))
	if errors.Is(err, fs.ErrNotExist) {
		return stored, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &stored)
	}
	return stored, err
}

var errOlder = errors.New("another pod has written since")

// save refuses an older fence. A database compares it in the same statement that writes.
func (p *pod) save(uid string, mine counter) error {
	stored, err := p.load(uid)
	if err != nil {
		return err
	}
	if stored.Fence > mine.Fence {
		return errOlder
	}
	text, err := json.Marshal(mine)
	if err != nil {
		return err
	}
	draft := filepath.Join(p.folder, fmt.Sprintf("draft-%d", os.Getpid()))
	if err := os.WriteFile(draft, text, 0o600); err != nil {
		return err
	}
	return os.Rename(draft, filepath.Join(p.folder, "of-"+uid))
}

func (p *pod) count(uid string, under *claim) (int, error) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	mine := p.counts[uid]
	if mine == nil || mine.Fence != under.Fence { // new here
		stored, err := p.load(uid)
		if err != nil {
			return 0, err
		}
		mine = &counter{stored.Count, under.Fence}
		// From now on nobody with an older fence can write.
		if err := p.save(uid, *mine); err != nil {
			return 0, err
		}
		p.counts[uid] = mine
	}
	mine.Count++
	if err := p.save(uid, *mine); err != nil {
		delete(p.counts, uid)
		return 0, err
	}
	return mine.Count, nil
}

func (p *pod) ServeHTTP(writer http.ResponseWriter, request *http.Request) {
	if request.URL.Path == "/healthz" {
		fmt.Fprintln(writer, "well")
		return
	}
	uid := request.Header.Get("X-Sfroute-Uid")
	if !encoded.MatchString(uid) {
		http.Error(writer, "no user", http.StatusBadRequest)
		return
	}
	found, answer, err := p.accept(request.Context(), uid)
	if err == nil && found == nil && answer.StatusCode == http.StatusConflict {
		// The gateway follows a 421 to the owner.
		for _, header := range []string{"X-Sfroute-Service", "X-Sfroute-Owner", "X-Sfroute-Full"} {
			if value := answer.Header.Get(header); value != "" {
				writer.Header().Set(header, value)
			}
		}
		writer.WriteHeader(http.StatusMisdirectedRequest)
		return
	}
	if err != nil || found == nil {
		http.Error(writer, "the agent cannot say", http.StatusServiceUnavailable)
		return
	}
	count, err := p.count(uid, found)
	if err != nil {
		http.Error(writer, "the count cannot be kept", http.StatusServiceUnavailable)
		return
	}
	writer.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(writer).Encode(map[string]any{"count": count, "pod": found.Pod, "language": "go"})
}

// forget drops what this pod loses. The stream begins anew where it ended.
func (p *pod) forget() {
	last := "0"
	for ; ; time.Sleep(200 * time.Millisecond) {
		answer, err := p.client.Get(p.agent + "/events?after=" + last)
		if err != nil {
			continue
		}
		event := ""
		for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
			field, value, _ := strings.Cut(lines.Text(), ": ")
			switch field {
			case "id":
				last = value
			case "event":
				event = value
			case "data":
				p.heed(event, value)
			}
		}
		answer.Body.Close()
	}
}

func (p *pod) heed(event, data string) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	switch event {
	case "failed", "superseded", "missed":
		p.counts = map[string]*counter{}
	case "lost":
		lost := struct{ UID string }{}
		if json.Unmarshal([]byte(data), &lost) == nil {
			for uid := range p.counts {
				if name, err := url.PathUnescape(uid); err == nil && name == lost.UID {
					delete(p.counts, uid)
				}
			}
		}
	}
}

func main() {
	pod := newPod(os.Getenv("SFROUTE_AGENT"), os.Args[2])
	go pod.forget()
	// The agent has drained before it sends this.
	leaving, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	server := &http.Server{Addr: "127.0.0.1:" + os.Args[1], Handler: pod}
	go func() {
		<-leaving.Done()
		_ = server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	<-leaving.Done()
}
