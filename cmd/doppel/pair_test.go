package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const pairConfig = `[network]
interface = "eth0"
pool = "10.99.0.200-10.99.0.250"
[[sync]]
image = "head"
between = ["head1", "head2"]
interval = "1h"
exclude = ["srv/mysql", "srv-fail"]
pre_update = "test ! -e /srv-fail || exit 1; while test -e /srv-hold; do sleep 1; done"
`

// Two heads, from a primary that doppel did not install to a failover and back,
// with changes on both sides, power cuts, and a doppel whose state is old.
func TestPair(t *testing.T) {
	r := newRig(t)
	if err := os.WriteFile(filepath.Join(r.dir, "doppel.toml"), []byte(pairConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	r.serve()
	r.enlistBoth()
	r.followOnce()
	r.copyStopped("state", "stale")
	r.turnAndPart()
	r.staleDoppel()
	r.decide()
	r.back()
	r.undo()
}

func (r *rig) enlistBoth() {
	t := r.t
	t.Helper()
	r.does(0, []string{"head@1"}, r.ssh("capture", "root@10.99.0.11", "--name", "head")...)
	r.does(1, []string{"there is no node"}, "node", "show", "head1")
	r.does(0, []string{"would enlist head1", "it was captured last as head@1"}, r.ssh("node", "enlist", "root@10.99.0.11", "--dry-run")...)
	mustNotExist(t, r, "head1", "/etc/doppel", "/usr/lib/doppel")
	before := r.on("head1", "find / -xdev ! -path '/tmp*' ! -path '/root*' | sort")
	r.does(3, []string{"enlisted head1", "bios firmware, 10.99.0.11 on 52:54:00:bb:00:11", "systemd does not run there"}, r.ssh("node", "enlist", "root@10.99.0.11")...)
	var added []string
	for line := range strings.Lines(r.on("head1", "find / -xdev ! -path '/tmp*' ! -path '/root*' | sort")) {
		if line = strings.TrimSpace(line); !strings.Contains("\n"+before+"\n", "\n"+line+"\n") {
			added = append(added, line)
		}
	}
	want := "/etc/doppel /etc/doppel/node /etc/doppel/node/ca.crt /etc/doppel/node/node.crt /etc/doppel/node/node.json /etc/doppel/node/node.key /etc/doppel/node/plan.json " +
		"/etc/systemd/system/doppel-agent.service /etc/systemd/system/multi-user.target.wants /etc/systemd/system/multi-user.target.wants/doppel-agent.service /usr/lib/doppel /usr/lib/doppel/doppel-agent"
	if have := strings.Join(added, " "); have != want {
		t.Errorf("enlisting put there:\n%s\nnot\n%s", have, want)
	}
	if modes := r.on("head1", "stat -c %a /etc/doppel/node /etc/doppel/node/*"); modes != "700\n600\n600\n600\n600\n600" {
		t.Errorf("modes: %q", modes)
	}
	r.does(3, []string{"enlisted head1"}, r.ssh("node", "enlist", "root@10.99.0.11")...) // again
	r.does(1, []string{"10.99.0.11 is the node head1 already"}, r.ssh("node", "enlist", "root@10.99.0.11", "--name", "other")...)
	r.does(2, []string{"--image:"}, r.ssh("node", "enlist", "root@10.99.0.12", "--image", "none")...)
	r.does(1, []string{"has no address 10.99.0.77", "eth0 10.99.0.12/24"}, r.ssh("node", "enlist", "root@10.99.0.12", "--ip", "10.99.0.77")...)
	r.does(3, []string{"enlisted head2"}, r.ssh("node", "enlist", "root@10.99.0.12", "--image", "head")...)
	r.runAgent("head1")
	r.runAgent("head2")
	r.status("head1 is the active head, which is captured")
}

// followOnce has the standby follow: the direction that there was before.
func (r *rig) followOnce() {
	r.t.Helper()
	r.await("told", func() bool {
		return strings.Contains(r.on("head2", "cat /etc/doppel/node/pair.json 2>/dev/null || true"), "generation")
	})
	r.has("head1", map[string]string{"/etc/doppel/node/pair.json": `{"image":"head","generation":1,"source":true}`})
	r.has("head2", map[string]string{"/etc/doppel/node/pair.json": `{"image":"head","generation":1,"source":false}`})
	r.on("head1", "echo one >/etc/app/1; echo new >/srv/new; mkdir /srv/mysql; echo live1 >/srv/mysql/live")
	r.does(0, nil, "sync", "now", "head")
	r.status("head2 equal to head@")
	r.await("the standby has it", func() bool { return r.on("head2", "cat /etc/app/1 /srv/new 2>/dev/null || true") == "one\nnew" })
	r.has("head2", map[string]string{"/etc/hostname": "head2", "/srv/mysql/live": ""})
	r.does(1, []string{"head1 is the active head of head, which is captured and never made equal"}, "deploy", "head1", "--image", "head", "--in-place", "--yes")
}

func (r *rig) copyStopped(from, to string) {
	r.t.Helper()
	r.stop()
	r.copyState(from, to)
	r.serve()
	r.status("head1 is the active head, which is captured")
}

// turnAndPart turns the direction, with power cuts, while both heads change.
func (r *rig) turnAndPart() {
	t := r.t
	t.Helper()
	r.on("head1", "echo two >/etc/app/2")
	r.does(0, nil, "sync", "now", "head")
	r.status("head2 equal to head@3")
	r.does(1, []string{"head1 is captured already"}, "sync", "turn", "head", "--to", "head1", "--yes")
	r.does(1, []string{"none of the two heads"}, "sync", "turn", "head", "--to", "nobody", "--yes")
	r.does(0, []string{"would make head2 the active head of head, generation 2", "since head@3"}, "sync", "turn", "--to", "head2", "--dry-run")

	// The primary is cut off the LAN: what is changed there, nobody captures.
	r.kill(r.heads["head1"].agent)
	r.on("head1", "echo mine >/etc/app/3; echo mine >/etc/app/4; rm /etc/app/5; echo mine >/srv/mine; chmod 711 /srv; mkdir -p /opt/tool; echo mine >/opt/tool/a; echo mine >/opt/tool/b")
	r.does(0, []string{"head2 is the active head of head, generation 2; head1 follows"}, "sync", "turn", "head", "--to", "head2", "--yes")
	r.kill(r.server) // the power goes
	r.serve()
	r.has("head2", map[string]string{"/etc/doppel/node/pair.json": `{"image":"head","generation":2,"source":true}`})
	r.on("head2", "echo theirs >/etc/app/4; echo theirs >/etc/app/6; echo theirs >/srv/theirs; rm /srv/new; echo live2 >/srv/mysql/live")
	r.does(0, nil, "sync", "now", "head")
	r.status("direction head2 to head1, generation 2", "its next update finds out what was changed there since head@3")

	// It comes back, and its first update is cut off with it.
	r.on("head1", "touch /srv-hold")
	r.runAgent("head1")
	r.status("becoming head@4: pre")
	r.kill(r.heads["head1"].agent)
	r.kill(r.server)
	r.on("head1", "rm /srv-hold; echo late >/etc/app/1")
	r.serve()
	r.runAgent("head1")
	r.status("keeps 9 paths")
	r.has("head1", map[string]string{
		"/etc/app/1": "late", "/etc/app/2": "two", "/etc/app/3": "mine", "/etc/app/4": "mine", "/etc/app/5": "", "/etc/app/6": "theirs", "/srv/theirs": "theirs", "/srv/new": "",
		"/opt/tool/a": "mine", "/etc/hostname": "head1", "/etc/doppel/node/pair.json": `{"image":"head","generation":2,"source":false}`,
	})
	r.has("head2", map[string]string{"/etc/app/4": "theirs", "/etc/app/3": "base"})
	r.status("of them changed on head2 as well: doppel sync drift head1")
	r.does(4, []string{"head1 keeps", "changed (on both heads)  /etc/app/4", "removed  /etc/app/5", "added  /opt/tool and 2 below it", "--adopt PATH"}, "sync", "drift", "head1")
	r.does(1, []string{"head1 has", "nobody has decided on", "--adopt or --revert"}, "sync", "turn", "--to", "head1", "--yes")
	r.does(0, []string{"are taken for right: head2 gets them"}, "sync", "turn", "--to", "head1", "--dry-run", "--force")
}

// staleDoppel starts a doppel whose state is from before the turn: it changes
// nothing on the active head, and says why.
func (r *rig) staleDoppel() {
	t := r.t
	t.Helper()
	r.stop()
	r.must("mv", filepath.Join(r.dir, "state"), filepath.Join(r.dir, "right"))
	r.copyState("stale", "state")
	before := r.on("head2", "find / -xdev -type f ! -path '/tmp*' ! -path '/etc/doppel*' -exec md5sum {} + | sort")
	r.serve()
	r.await("the stale event", func() bool {
		out := r.doppel("events")
		return strings.Contains(out, "head2 takes no orders from this doppel") && strings.Contains(out, "another doppel has turned the direction since")
	})
	r.does(0, nil, "sync", "now", "head") // head1, as it believes, is captured
	r.await("the refusal", func() bool {
		return strings.Contains(r.doppel("sync", "status"), "this is the active head of head in generation 2, and the word is of generation 1")
	})
	r.does(0, nil, "deploy", "head2", "--image", "head@1", "--in-place", "--force", "--yes")
	r.await("the refusal of a deploy", func() bool {
		return strings.Contains(r.doppel("events"), "head2 did not become head@1: this is the active head")
	})
	r.does(1, []string{"was told generation 2 of the direction by another doppel, and this one knows 1", "this doppel's state is older"}, "sync", "turn", "--to", "head2", "--yes")
	if after := r.on("head2", "find / -xdev -type f ! -path '/tmp*' ! -path '/etc/doppel*' -exec md5sum {} + | sort"); after != before {
		t.Error("the active head was changed by a doppel with an old state")
	}
	r.stop()
	r.must("rm", "-r", filepath.Join(r.dir, "state"))
	r.must("mv", filepath.Join(r.dir, "right"), filepath.Join(r.dir, "state"))
	r.serve()
}

// decide takes some of what the old primary has, and gives up the rest.
func (r *rig) decide() {
	r.t.Helper()
	r.status("head1 equal to head@4")
	r.does(1, []string{"nothing at /home was changed on head1 since head@3", "lists what was"}, "sync", "drift", "head1", "--adopt", "/opt", "--adopt", "/home", "--yes")
	// What nobody has captured yet of the active head stays, and is in a version.
	r.on("head2", "echo since >/srv/theirs; echo since >/srv/since; echo since >/etc/app/4; touch /srv-fail")
	adopt := []string{"sync", "drift", "head1", "--adopt", "/opt/tool", "--adopt", "/etc/app/4", "--adopt", "/srv", "--yes"}
	r.does(1, []string{"head2 takes /opt/tool, /etc/app/4, /srv", "exit status 1"}, adopt...)
	r.on("head2", "rm /srv-fail")
	r.has("head2", map[string]string{"/etc/app/4": "since", "/opt/tool/a": ""})
	r.does(0, []string{"head2 takes /opt/tool, /etc/app/4, /srv"}, adopt...)
	r.has("head2", map[string]string{
		"/opt/tool/a": "mine", "/opt/tool/b": "mine", "/etc/app/4": "mine", "/srv/mine": "mine", "/etc/app/6": "theirs", "/etc/app/3": "base",
		"/srv/theirs": "since", "/srv/since": "since", "/srv/mysql/live": "live2",
	})
	r.has("head1", map[string]string{"/srv/mysql/live": "live1"})
	if mode := r.on("head2", "stat -c %a /srv"); mode != "711" {
		r.t.Errorf("/srv has mode %s", mode)
	}
	r.does(0, []string{"since"}, "image", "cat", "head@5", "/etc/app/4")
	if out := r.doppel("image", "files", "head"); strings.Contains(out, "mysql/live") || !strings.Contains(out, "srv/mysql") {
		r.t.Errorf("the version has what was left out:\n%s", out)
	}
	if out := r.doppel("image", "ls"); strings.Contains(out, "drift-head1") {
		r.t.Errorf("the capture of head1 is left:\n%s", out)
	}
	r.does(0, nil, "sync", "now", "head")
	r.await("what was adopted is no longer head1's own", func() bool {
		out := r.doppel("sync", "drift", "head1")
		return strings.Contains(out, "/etc/app/3") && !strings.Contains(out, "/srv/mine") && !strings.Contains(out, "/opt/tool") && !strings.Contains(out, "/etc/app/4")
	})
	r.does(0, nil, "sync", "drift", "head1", "--revert", "/etc/app", "--yes")
	r.await("equal", func() bool { return !strings.Contains(r.doppel("sync", "status"), "keeps") })
	r.has("head1", map[string]string{"/etc/app/1": "one", "/etc/app/3": "base", "/etc/app/4": "mine", "/etc/app/5": "base", "/etc/app/6": "theirs", "/opt/tool/b": "mine"})
	r.does(0, []string{"nothing on head1 is its own any more"}, "events", "--kind", "equal")
	r.does(0, nil, "sync", "drift", "head1", "--full")
}

// back is the failback.
func (r *rig) back() {
	r.t.Helper()
	r.on("head2", "echo last >/srv/last")
	r.does(0, nil, "sync", "now", "head")
	r.await("equal", func() bool { return r.on("head1", "cat /srv/last 2>/dev/null || true") == "last" })
	r.status("head1 equal to head@")
	r.does(0, []string{"head1 is the active head of head, generation 3; head2 follows"}, "sync", "turn", "--to", "head1", "--yes")
	r.has("head1", map[string]string{"/etc/doppel/node/pair.json": `{"image":"head","generation":3,"source":true}`, "/etc/doppel/node/parted.json": ""})
	r.on("head1", "echo again >/srv/again")
	r.does(0, nil, "sync", "now", "head")
	r.await("head2 follows again", func() bool { return r.on("head2", "cat /srv/again 2>/dev/null || true") == "again" })
	r.await("they are equal", func() bool {
		out := r.doppel("sync", "status")
		return strings.Contains(out, "head2 equal to head@") && !strings.Contains(out, "keeps")
	})
	r.does(0, nil, "sync", "drift", "head2", "--full")
}

// undo takes an enlistment back.
func (r *rig) undo() {
	t := r.t
	t.Helper()
	r.kill(r.heads["head2"].agent)
	r.does(0, []string{"head2 is no node any more"}, r.ssh("node", "enlist", "root@10.99.0.12", "--undo")...)
	mustNotExist(t, r, "head2", "/etc/doppel", "/usr/lib/doppel", "/etc/systemd/system/doppel-agent.service", "/etc/systemd/system/multi-user.target.wants/doppel-agent.service")
	r.does(1, []string{"there is no node"}, "node", "show", "head2")
	r.does(0, []string{"head2 is not in the inventory: doppel node enlist"}, "sync", "status")
	if out := r.doppel("events"); !strings.Contains(out, fmt.Sprintf("head2 (%s, 52:54:00:bb:00:12) is a node that doppel did not install", r.heads["head2"].addr)) {
		t.Errorf("events: %s", out)
	}
}
