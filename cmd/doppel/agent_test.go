package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// A node goes on as the agent of the doppel that is started there, as the same
// process.
func TestNodesGetTheAgent(t *testing.T) {
	r := newRig(t)
	// Programs of this rig's own: another version is installed here later.
	bin := t.TempDir()
	for _, name := range []string{"doppel", "doppel-agent"} {
		r.must("cp", filepath.Join(r.bin, name), bin)
	}
	r.bin = bin
	r.does(0, nil, "init", "--interface", "eth0")
	r.serve()
	r.does(3, nil, r.ssh("node", "enlist", "root@10.99.0.11", "--name", "head1")...)
	r.runAgent("head1")
	r.does(0, nil, "capture", "node:head1", "--name", "head")
	running := func() string {
		t.Helper()
		return strings.Fields(r.must("sha256sum", fmt.Sprintf("/proc/%d/exe", r.heads["head1"].agent.Process.Pid)))[0]
	}
	before := running()

	// The same program to the processor, another one to everybody else. It is the
	// next daemon's: this one's is what it was started with.
	next := filepath.Join(bin, "next")
	r.must("sh", "-c", fmt.Sprintf("cp %[1]s/doppel-agent %[2]s && echo another >>%[2]s && mv %[2]s %[1]s/doppel-agent", bin, next))
	want := strings.Fields(r.must("sha256sum", filepath.Join(bin, "doppel-agent")))[0]
	r.does(0, nil, "capture", "node:head1", "--name", "head")
	if running() != before {
		t.Error("the agent is another one before its daemon is")
	}
	r.stop()
	r.serve()
	r.await("the new agent", func() bool { return running() == want })
	if out := r.on("head1", "sha256sum </usr/lib/doppel/doppel-agent; ls -A /usr/lib/doppel"); out != want+"  -\ndoppel-agent" {
		t.Errorf("on the head lies %s", out)
	}
	r.does(0, []string{"head@2"}, "capture", "node:head1", "--name", "head")
}
