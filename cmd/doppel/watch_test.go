package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const watchConfig = `[network]
interface = "eth0"
pool = "10.99.0.200-10.99.0.250"
[[sync]]
image = "head"
source = "node:head1"
interval = "1s"
watch = true
rescan_every = "1h"
keep_last = 100
`

// A node that is watched through its agent, which does other work meanwhile.
func TestWatchOfANode(t *testing.T) {
	r := newRig(t)
	if err := os.WriteFile(filepath.Join(r.dir, "doppel.toml"), []byte(watchConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	r.serve()
	r.does(3, nil, r.ssh("node", "enlist", "root@10.99.0.11", "--name", "head1")...)
	r.runAgent("head1")
	r.does(0, []string{"head@1"}, "sync", "now")
	r.on("head1", "echo two >/etc/app/2")
	r.status("the latest is head@2")
	r.on("head1", "mv /etc/app /etc/moved; ln /etc/moved/1 /etc/one")
	r.does(0, nil, "sync", "now")
	r.does(0, []string{"two"}, "image", "cat", "head", "etc/moved/2")
	if out := r.doppel("sync", "status"); !strings.Contains(out, "from node:head1 every 1.0 s, watched") || strings.Contains(out, "everything was looked at") {
		t.Error(out)
	}
	// The stream that stays is no hindrance.
	other := r.does(0, []string{"other@1"}, "capture", "node:head1", "--name", "other")
	t.Log(other)
	r.does(0, nil, "image", "diff", "head", "other")
	// Nor does it outlive either end.
	r.kill(r.heads["head1"].agent)
	r.runAgent("head1")
	r.on("head1", "echo three >/etc/moved/3")
	r.await("a round by the new agent", func() bool {
		out, code := r.try("image", "cat", "head", "etc/moved/3")
		return code == 0 && out == "three\n"
	})
	r.stop()
	r.await("the end of the agent's far end", func() bool {
		return r.on("head1", "ps | grep 'exe capture' | grep -v grep || true") == ""
	})
}
