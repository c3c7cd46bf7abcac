package main

import (
	"path/filepath"
	"strings"
	"testing"

	"doppel/cluster"
)

// A daemon that is stopped does not make an image free to be removed: the node
// that is armed for it goes on when the daemon is back.
func TestNodeUsingWithoutDaemon(t *testing.T) {
	g := &globals{state: t.TempDir()}
	if user, err := nodeUsing(t.Context(), g, "head@1"); err != nil || user != "" {
		t.Errorf("without any state: %q, %v", user, err)
	}
	if there, err := filepath.Glob(filepath.Join(g.state, "*")); err != nil || len(there) > 0 {
		t.Errorf("looking made %q, %v", there, err)
	}
	c, err := cluster.Open(filepath.Join(g.state, "cluster.db"), cluster.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := cluster.Node{Name: "node001", Netmask: 24}
	if n.Addr, err = parseAddr("--ip", "10.1.0.11"); err != nil {
		t.Fatal(err)
	}
	err = c.Commit(t.Context(), cluster.AddNodes{Nodes: []cluster.Node{n}}, cluster.Assign{MAC: cluster.MAC{0x52, 0x54, 0, 0, 0, 1}, Node: "node001"},
		cluster.Arm{Node: "node001", Install: "I", Image: "head@1", Digest: "sha256:11", After: "reboot"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if user, err := nodeUsing(t.Context(), g, "head@1"); err != nil || !strings.Contains(user, "node001 is to get head@1") {
		t.Errorf("armed: %q, %v", user, err)
	}
	if user, err := nodeUsing(t.Context(), g, "head@2"); err != nil || user != "" {
		t.Errorf("another version: %q, %v", user, err)
	}
}
