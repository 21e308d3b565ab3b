// A pod in Go that counts the requests of each user. `sfroute agent` speaks for it:
//
//	sfroute agent --pod 1 --health http://127.0.0.1:8081/healthz -- ./pod 8081 /var/lib/counters
//
// It serves a user only if the agent says that this pod has them. Counts are kept in a folder that all pods share
// (counters.go), and are written under the fence of the user's claim. Only Go's own packages.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// As gateways encode uids: fit for a path, and for the name of a file.
var encoded = regexp.MustCompile(`^[\w.~%-]+$`)

type claim struct {
	Pod   int   `json:"pod"`
	Fence int64 `json:"fence"`
}

type pod struct {
	agent    string // a URL without a path
	client   *http.Client
	counters *counters
}

func newPod(agent, folder string) *pod {
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	if path, isUnix := strings.CutPrefix(agent, "unix:"); isUnix {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
		agent = "http://agent"
	}
	return &pod{agent, &http.Client{Transport: transport}, newCounters(folder)}
}

// accept claims a user. The answer's headers are those of a 421, if another pod has the user or takes them meanwhile.
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

// elsewhere answers 421 with what the agent says of the user's owner: the gateway follows.
func elsewhere(writer http.ResponseWriter, said http.Header) {
	for _, header := range []string{"X-Sfroute-Service", "X-Sfroute-Owner", "X-Sfroute-Full"} {
		if value := said.Get(header); value != "" {
			writer.Header().Set(header, value)
		}
	}
	writer.WriteHeader(http.StatusMisdirectedRequest)
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
		elsewhere(writer, answer.Header)
		return
	}
	if err != nil || found == nil {
		http.Error(writer, "the agent cannot say", http.StatusServiceUnavailable)
		return
	}
	count, err := p.counters.add(uid, found.Fence)
	if errors.Is(err, errRefused) {
		elsewhere(writer, answer.Header)
		return
	}
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
	switch event {
	case "failed", "superseded", "missed":
		p.counters.forget(func(string) bool { return true })
	case "lost":
		lost := struct{ UID string }{}
		if json.Unmarshal([]byte(data), &lost) == nil {
			p.counters.forget(func(uid string) bool {
				name, err := url.PathUnescape(uid)
				return err == nil && name == lost.UID
			})
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
