package web

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

// A node that waits for work is asked, and its answer is given to who asked.
func TestDrift(t *testing.T) {
	b := newBench(t)
	b.machines.Patience = time.Minute
	b.machines.Update = func(n cluster.Node) Policy { return Policy{Keep: []string{"kept/of/" + n.Update.Image}} }
	m := b.certified("node001", 11)
	type answer struct {
		report json.RawMessage
		err    error
	}
	got := make(chan answer, 1)
	asked := make(chan clone.Task)
	poll := func() {
		var task clone.Task
		m.ask("/v1/task", clone.Idle{}, &task)
		asked <- task
	}
	go poll()
	go func() {
		r, err := b.machines.AskDrift(t.Context(), b.node("node001"), "head@1", digest, true)
		got <- answer{r, err}
	}()
	o := (<-asked).Drift
	if o == nil || o.Image != "head@1" || !o.Full || o.Digest != digest || len(o.Keep) != 1 || o.Keep[0] != "kept/of/head@1" || o.Head != nil {
		t.Fatalf("%+v", o)
	}
	go poll() // it was started anew before it answered
	if again := (<-asked).Drift; again == nil || again.ID != o.ID {
		t.Errorf("%+v", again)
	}
	other := b.certified("node002", 12)
	if status, _ := other.ask("/v1/drift", clone.DriftWord{ID: o.ID, Report: json.RawMessage(`{"entries":9}`)}, nil); status != 403 {
		t.Errorf("another node answers: %d", status)
	}
	if status, why := m.ask("/v1/drift", clone.DriftWord{ID: o.ID, Report: json.RawMessage(`{"entries":7}`)}, nil); status != 204 {
		t.Errorf("%d, %s", status, why)
	}
	if a := <-got; a.err != nil || string(a.report) != `{"entries":7}` {
		t.Errorf("%s, %v", a.report, a.err)
	}
	if status, why := m.ask("/v1/drift", clone.DriftWord{ID: o.ID}, nil); status != 403 || !strings.Contains(why, "nobody waits") {
		t.Errorf("twice: %d, %s", status, why)
	}

	// What the node could not do is told; who does not wait any more leaves
	// nothing behind.
	go poll()
	go func() {
		r, err := b.machines.AskDrift(t.Context(), b.node("node001"), "head@1", digest, false)
		got <- answer{r, err}
	}()
	o = (<-asked).Drift
	if status, why := m.ask("/v1/drift", clone.DriftWord{ID: o.ID, Failed: "no plan.json"}, nil); status != 204 {
		t.Errorf("%d, %s", status, why)
	}
	refused, ok := errors.AsType[*cluster.RefusedError]((<-got).err)
	if !ok || !strings.Contains(refused.What, "no plan.json") {
		t.Errorf("%v", refused)
	}
	b.noSecrets(m)
}

func TestAdminDrift(t *testing.T) {
	o, ctx := newOffice(t), t.Context()
	addThree(t, o)
	_, err := o.client.Drift(ctx, DriftRequest{Node: "node001"})
	wants(t, err, 1, "runs nothing that doppel installed", "doppel status")
	_, err = o.client.Drift(ctx, DriftRequest{Node: "nobody"})
	wants(t, err, 1, "no node", "")
}

// The stream that a node opens is given to who asked for it, and to nobody else.
func TestStream(t *testing.T) {
	b := newBench(t)
	b.machines.Patience = time.Minute
	m, other := b.certified("node001", 11), b.certified("node002", 12)
	got := make(chan net.Conn, 1)
	ctx, cancel := context.WithCancel(t.Context())
	open := func() {
		c, err := b.machines.OpenCapture(ctx, "node001", false)
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
		got <- c
	}
	go open()
	var task clone.Task
	if m.ask("/v1/task", clone.Idle{}, &task); task.Capture == nil {
		t.Fatalf("%+v", task)
	}
	upgrade := func(m *machine, id string) (*http.Response, net.Conn, *bufio.Reader) {
		t.Helper()
		config := m.client().Transport.(*http.Transport).TLSClientConfig.Clone()
		config.NextProtos = []string{"http/1.1"}
		c, err := tls.Dial("tcp", strings.TrimPrefix(b.url, "https://"), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "GET /v1/stream?id=%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: doppel-capture\r\n\r\n", id)
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		return res, c, r
	}
	// Another node, and no node at all.
	if res, c, r := upgrade(other, task.Capture.ID); res.StatusCode == 101 {
		if _, err := r.ReadByte(); err == nil {
			t.Error("another node's stream was taken")
		}
		c.Close()
	}
	if status, _ := b.machine(addrOf(11)).ask("/v1/task", clone.Idle{}, nil); status != 401 {
		t.Errorf("nobody asks for work: %d", status)
	}
	res, c, r := upgrade(m, task.Capture.ID)
	if res.StatusCode != 101 {
		t.Fatalf("%d", res.StatusCode)
	}
	far := <-got
	defer far.Close()
	if _, err := io.WriteString(c, "to the head"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 11)
	if _, err := io.ReadFull(far, buf); err != nil || string(buf) != "to the head" {
		t.Errorf("%q, %v", buf, err)
	}
	if _, err := io.WriteString(far, "to the node"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, buf); err != nil || string(buf) != "to the node" {
		t.Errorf("%q, %v", buf, err)
	}
	// Who has gone gets no stream.
	go open()
	m.ask("/v1/task", clone.Idle{}, &task)
	cancel()
	if c := <-got; c != nil {
		t.Error("a stream was given to who has gone")
	}
	if _, _, r := upgrade(m, task.Capture.ID); r != nil {
		if _, err := r.ReadByte(); err == nil {
			t.Error("a stream that nobody waits for stays open")
		}
	}
}
