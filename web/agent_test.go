package web

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging/store"
)

func fetch(t *testing.T, m *machine, path string) (int, []byte) {
	t.Helper()
	res, err := m.client().Get(m.b.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, got
}

// A node with another agent than this doppel's is given that before anything
// else, some nodes at once and not all; one that cannot run it goes on working.
func TestAgentIsRenewed(t *testing.T) {
	b := newBench(t)
	b.machines.Patience = 1
	content := bytes.Repeat([]byte("agent"), 1000)
	ours, other := store.Sum(content), store.Sum([]byte("older"))
	b.machines.Agent = &AgentFile{Digest: ours, Size: int64(len(content)), Content: bytes.NewReader(content)}
	m := b.certified("node001", 11)
	orderUpdate(t, b, "node001", "U1")
	ask := func(m *machine, idle clone.Idle) clone.Task {
		t.Helper()
		var task clone.Task
		if status, why := m.ask("/v1/task", idle, &task); status != 200 && status != 204 {
			t.Fatalf("%d, %s", status, why)
		}
		return task
	}
	for range 2 { // it was cut off while it fetched it
		if task := ask(m, clone.Idle{Agent: other}); task.Update != nil || task.Agent == nil || task.Agent.Digest != ours || task.Agent.Size != int64(len(content)) {
			t.Fatalf("%+v", task)
		}
	}
	// What it says may be of a later doppel.
	later := map[string]any{"boot_id": "b", "agent": other, "mood": map[string]any{"good": true}}
	var task clone.Task
	if status, why := m.ask("/v1/task", later, &task); status != 200 || task.Agent == nil || task.Agent.Digest != ours {
		t.Errorf("%d, %s: %+v", status, why, task)
	}
	if status, got := fetch(t, m, "/v1/agent"); status != 200 || !bytes.Equal(got, content) {
		t.Errorf("%d, %d bytes", status, len(got))
	}
	for _, idle := range []clone.Idle{{Agent: ours}, {}, {Agent: other, AgentRefused: &clone.AgentRefusal{Digest: ours, Why: "it does not run here"}}} {
		if task := ask(m, idle); task.Agent != nil || task.Update == nil {
			t.Errorf("%+v was given %+v", idle, task)
		}
	}
	ask(m, clone.Idle{Agent: other, AgentRefused: &clone.AgentRefusal{Digest: ours, Why: "it does not run here"}})
	said := 0
	for _, e := range b.cluster.Events(0, cluster.Filter{Kind: "warning"}) {
		if strings.Contains(e.Text, "it does not run here") {
			said++
		}
	}
	if said != 1 {
		t.Errorf("the refusal is in %d events", said)
	}
	// A refusal of an agent before this one is of no account.
	if task := ask(m, clone.Idle{Agent: other, AgentRefused: &clone.AgentRefusal{Digest: other}}); task.Agent == nil {
		t.Errorf("%+v", task)
	}

	var waiting []*machine
	for i := range renewAtOnce {
		waiting = append(waiting, b.certified(fmt.Sprintf("many%02d", i), byte(20+i)))
		task := ask(waiting[i], clone.Idle{Agent: other})
		if (task.Agent != nil) != (i < renewAtOnce-1) {
			t.Errorf("node %d was given %+v", i, task)
		}
	}
	last := waiting[renewAtOnce-1]
	ask(m, clone.Idle{Agent: ours})
	if task := ask(last, clone.Idle{Agent: other}); task.Agent == nil {
		t.Error("there is a place by now, and the last one was not given it")
	}
	b.noSecrets(m)
}
