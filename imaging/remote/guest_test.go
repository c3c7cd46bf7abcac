package remote

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// threadsOf reads what /proc tells of the threads of a process: the fields
// behind the name.
func threadsOf(t *testing.T, pid int) map[int][]string {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	threads := map[int][]string{}
	for _, e := range list {
		id, _ := strconv.Atoi(e.Name())
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, id)); err == nil {
			threads[id] = strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		}
	}
	return threads
}

// While it captures, each thread of the agent stands behind everything else on
// the head, for CPU and disk, and in the usual scheduling class.
func TestAgentYields(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	h.fill(40, 1<<20)
	src, err := Agent(t.Context(), dialHead(t, h.target("root"), options(t, h, key)), AgentOptions{Path: agentBinary})
	if err != nil {
		t.Fatal(err)
	}
	agents := h.agents()
	if len(agents) != 1 {
		t.Fatalf("agents: %v", agents)
	}
	sink := newTreeSink()
	seen := 0
	sink.onBlock = func() {
		threads := threadsOf(t, agents[0])
		for id, stat := range threads {
			const nice, policy = 19 - 3, 41 - 3 // proc(5) counts from 1, with the name
			io, _, _ := unix.Syscall(unix.SYS_IOPRIO_GET, 1, uintptr(id), 0)
			if stat[nice] != "19" || stat[policy] != "0" || io>>13 != 3 {
				t.Errorf("thread %d: nice %s, policy %s, I/O priority %#x", id, stat[nice], stat[policy], io)
			}
		}
		seen = max(seen, len(threads))
	}
	if err := src.Scan(t.Context(), mnt(), sink); err != nil {
		t.Fatal(err)
	}
	if err := src.Close(); err != nil {
		t.Error(err)
	}
	if seen < 3 {
		t.Errorf("at most %d threads were seen", seen)
	}
}

// However fast the head, no more bytes a second come from it than were asked
// for: by the agent's wire, and by SFTP.
func TestLimitOfTheRate(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	h.fill(6, 2<<20)
	req := mnt()
	req.Limits.Rate = 6 << 20
	for name, open := range map[string]func(*Conn) (imaging.Source, error){
		"agent": func(c *Conn) (imaging.Source, error) {
			return Agent(t.Context(), c, AgentOptions{Path: agentBinary})
		},
		"SFTP": func(c *Conn) (imaging.Source, error) { return SFTP(t.Context(), c) },
	} {
		conn := dialHead(t, h.target("root"), options(t, h, key))
		src, err := open(conn)
		if err != nil {
			t.Fatal(err)
		}
		start, before := time.Now(), conn.Received()
		sink := newTreeSink()
		sink.onBlock = func() {
			got, took := conn.Received()-before, time.Since(start)
			// SSH adds a hundredth, what is asked for ahead a piece.
			if most := 1.02*float64(req.Limits.Rate)*(took.Seconds()+0.1) + 100_000; float64(got) > most {
				t.Errorf("%s: %d bytes within %v", name, got, took)
			}
		}
		if err := src.Scan(t.Context(), req, sink); err != nil {
			t.Error(err)
		}
		if err := src.Close(); err != nil {
			t.Error(err)
		}
		if sink.sent < 12<<20 {
			t.Errorf("%s: %d bytes", name, sink.sent)
		}
	}
}

// The agent uses no more of the head's CPUs than it may.
func TestLimitOfTheCPU(t *testing.T) {
	signer, key := newKey(t)
	h := startHead(t, headSpec{}, signer.PublicKey())
	// Text, so that there is something to compress: some 3 s of work.
	words := rand.New(rand.NewPCG(1, 2))
	var lines [10_000]string
	for i := range lines {
		lines[i] = fmt.Sprintf("%x lorem %d ipsum %x\n", words.Uint64(), words.IntN(1000), words.Uint64())
	}
	for i := range 20 {
		var b strings.Builder
		for b.Len() < 10<<20 {
			b.WriteString(lines[words.IntN(len(lines))])
		}
		writeFile(t, filepath.Join(h.tree, fmt.Sprint(i)), b.String(), 0o644)
	}
	src, err := Agent(t.Context(), dialHead(t, h.target("root"), options(t, h, key)), AgentOptions{Path: agentBinary})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	agent := h.agents()[0]
	used := func() (sum time.Duration) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", agent))
		if err != nil {
			return 0 // it has ended by now
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		for _, f := range fields[14-3 : 16-3] { // of the process, in ticks of 10 ms
			ticks, _ := strconv.Atoi(f)
			sum += time.Duration(ticks) * 10 * time.Millisecond
		}
		return sum
	}
	req := mnt()
	req.Limits.CPU = 15
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	start, before := time.Now(), used()
	var spent, took time.Duration
	sink := newTreeSink()
	sink.onBlock = func() {
		if now := used(); now > 0 {
			took, spent = time.Since(start), now-before
		}
	}
	src.Scan(ctx, req, sink)
	// What is in the stages when the pace is first kept is ahead of it.
	if most := time.Duration(0.15*float64(took)) + 600*time.Millisecond; spent > most || took == 0 {
		t.Errorf("%v of CPU within %v", spent, took)
	}
	t.Logf("%v of CPU within %v, %d bytes", spent, took, sink.sent)
}
