package cluster

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// Every rule, broken once: the change is refused, says why, names what to do,
// and alters nothing.
func TestRules(t *testing.T) {
	one := func(n Node) AddNodes { return AddNodes{Nodes: []Node{n}} }
	for _, test := range []struct {
		name   string
		change Change
		says   string
		hint   string
	}{
		{"duplicate name", add("node001", 50), "there is a node node001 already", "node rm"},
		{"the same name twice", AddNodes{Nodes: []Node{{Name: "x", Addr: addr(50)}, {Name: "x", Addr: addr(51)}}}, "there is a node x already", "choose"},
		{"invalid host name", add("node_1", 50), `"node_1" is not a host name`, "letters"},
		{"address of a node", add("x", 11), "10.77.0.11, which is node001's", "another address"},
		{"the same address twice", AddNodes{Nodes: []Node{{Name: "x", Addr: addr(50)}, {Name: "y", Addr: addr(50)}}}, "x and y would both have 10.77.0.50", "own"},
		{"address of the server", add("x", 1), "this server's own", "another"},
		{"address in the pool", add("x", 225), "in the pool 10.77.0.200-10.77.0.250", "outside the pool"},
		{"first address of the pool", add("x", 200), "in the pool", ""},
		{"last address of the pool", add("x", 250), "in the pool", ""},
		{"network address", add("x", 0), "the network itself", ""},
		{"broadcast address", add("x", 255), "broadcast", ""},
		{"address outside the subnet", one(Node{Name: "x", Addr: netip.MustParseAddr("10.78.0.1")}), "outside the subnet 10.77.0.0/24", "subnet"},
		{"no address", one(Node{Name: "x"}), "no address", ""},
		{"IPv6 address", one(Node{Name: "x", Addr: netip.MustParseAddr("fe80::1")}), "not an IPv4 address", ""},
		{"broadcast of its own prefix", one(Node{Name: "x", Addr: addr(127), Netmask: 25}), "broadcast", ""},
		{"prefix length", one(Node{Name: "x", Addr: addr(50), Netmask: 33}), "33 is not a prefix length", ""},
		{"gateway elsewhere", one(Node{Name: "x", Addr: addr(50), Gateway: netip.MustParseAddr("10.1.1.1")}), "gateway 10.1.1.1", ""},
		{"its own gateway", one(Node{Name: "x", Addr: addr(50), Gateway: addr(50)}), "own gateway", ""},
		{"role", one(Node{Name: "x", Addr: addr(50), Role: "storage"}), `"storage" is not a role`, "compute"},
		{"domain", one(Node{Name: "x", Addr: addr(50), Domain: "a..b"}), "is not a domain", ""},
		{"image", one(Node{Name: "x", Addr: addr(50), Image: "a b"}), "is not an image", "image ls"},
		{"imported MAC of another", one(Node{Name: "x", Addr: addr(50), MAC: new(mac(2))}), "is assigned to node002", "unassign node002"},
		{"imported MAC twice", AddNodes{Nodes: []Node{{Name: "x", Addr: addr(50), MAC: new(mac(50))}, {Name: "y", Addr: addr(51), MAC: new(mac(50))}}}, "would both be the machine", ""},

		{"set: unknown node", SetNode{Name: "nobody"}, "there is no node \"nobody\"", "node ls"},
		{"set: address of a node", SetNode{Name: "node001", Addr: new(addr(12))}, "which is node002's", ""},
		{"set: address in the pool", SetNode{Name: "node001", Addr: new(addr(220))}, "in the pool", ""},
		{"set: while installing", SetNode{Name: "installing", Addr: new(addr(60))}, "is installing", "disarm"},

		{"rm: unknown node", RemoveNode{Name: "nobody"}, "there is no node", ""},
		{"rm: armed", RemoveNode{Name: "armed"}, "armed is armed", "disarm armed"},
		{"rm: installing", RemoveNode{Name: "installing"}, "is installing", "disarm"},

		{"assign: unknown node", Assign{MAC: mac(50), Node: "nobody"}, "there is no node", ""},
		{"assign: MAC of another", Assign{MAC: mac(2), Node: "node001"}, "52:54:00:00:00:02 is assigned to node002", "doppel unassign node002 first"},
		{"assign: has another", Assign{MAC: mac(50), Node: "node002"}, "node002 is the machine 52:54:00:00:00:02 already", "doppel unassign node002 first"},
		{"assign: group address", Assign{MAC: MAC{1}, Node: "node001"}, "group address", ""},
		{"assign: broadcast", Assign{MAC: MAC{255, 255, 255, 255, 255, 255}, Node: "node001"}, "group address", ""},
		{"unassign: unknown node", Unassign{Node: "nobody"}, "there is no node", ""},
		{"unassign: installing", Unassign{Node: "installing"}, "is installing", "disarm"},

		{"arm: unknown node", arm("nobody", "I"), "there is no node", ""},
		{"arm: no machine", arm("node001", "I"), "node001 has no machine", "doppel assign MAC node001 first"},
		{"arm: installing", arm("installing", "I"), "is installing head@3", "disarm"},
		{"arm: what after", Arm{Node: "node002", Install: "I", Image: "i@1", Digest: "d", After: "dance"}, `"dance"`, "reboot"},
		{"disarm: unknown node", Disarm{Node: "nobody"}, "there is no node", ""},

		{"boot: not armed", BeginBoot{Node: "node002", Boot: nonce}, "no install is permitted", "deploy"},
		{"boot: failed", BeginBoot{Node: "failed", Boot: nonce}, "failed is failed: no install is permitted", "deploy"},
		{"enrol: not armed", Enrol{Node: "node002", Boot: nonce}, "no install is permitted", ""},
		{"enrol: never booted", Enrol{Node: "armed", Boot: ""}, "was not given the installer", ""},
		{"enrol: another boot", Enrol{Node: "installing", Boot: "fedcba9876543210"}, "was not given the installer", ""},
		{"enrol: twice", Enrol{Node: "installing", Boot: nonce}, "has enrolled already", "boot the machine again"},
		{"install: not armed", BeginInstall{Node: "node002", Install: "I"}, "no install is permitted", ""},
		{"install: another", BeginInstall{Node: "armed", Install: "I"}, "armed for another install", ""},
		{"stage: another install", ReportStage{Node: "installing", Install: "I", Stage: "apply"}, "another install", ""},
		{"stage: not armed", ReportStage{Node: "node002", Install: "I", Stage: "apply"}, "no install is permitted", ""},
		{"certify: another install", Certify{Node: "installing", Install: "I", Key: "k"}, "another install", ""},
		{"finish: armed only", Finish{Node: "armed", Install: "A"}, "was not given a plan", ""},
		{"finish: another install", Finish{Node: "installing", Install: "I"}, "another install", ""},
		{"finish: not armed", Finish{Node: "node002", Install: "I"}, "no install is permitted", ""},
		{"finish: after a failure", Finish{Node: "failed", Install: "F"}, "no install is permitted", ""},
		{"fail: another install", Fail{Node: "installing", Install: "I"}, "another install", ""},
		{"fail: not armed", Fail{Node: "node002", Install: "I"}, "no install is permitted", ""},
		{"up: unknown node", Up{Node: "nobody"}, "there is no node", ""},

		{"round: image", EndRound{Image: "head@3", Round: Round{Version: "head@4"}}, "is not the name of an image", "image ls"},
		{"pause: image", PauseSync{Image: "", Paused: true}, "is not the name of an image", ""},
		{"hold: unknown node", HoldNode{Node: "nobody", Held: true}, "there is no node", ""},
		{"update: unknown node", OrderUpdate{Node: "nobody"}, "there is no node", ""},
		{"update: runs nothing", OrderUpdate{Node: "node002", ID: "U2", Image: "i@1", Digest: "d"}, "runs nothing that doppel installed", "doppel deploy"},
		{"update: armed", OrderUpdate{Node: "armed", ID: "U2", Image: "i@1", Digest: "d"}, "armed is armed", "disarm armed"},
		{"update: installing", OrderUpdate{Node: "installing", ID: "U2", Image: "i@1", Digest: "d"}, "is installing", "disarm"},
		{"update: failed", OrderUpdate{Node: "failed", ID: "U2", Image: "i@1", Digest: "d"}, "runs nothing", "doppel deploy"},
		{"update: paths of another version", OrderUpdate{Node: "updating", ID: "U2", Image: "i@1", Digest: "d", Paths: []string{"etc"}}, "can only be made as in head@3, which it runs", "leave the version out"},
		{"update: path with a line's end", OrderUpdate{Node: "updating", ID: "U2", Image: "head@3", Digest: "d", Paths: []string{"a\nb"}}, "is not a path that can be named", ""},
		{"update begins: none", BeginUpdate{Node: "node002", ID: "U"}, "was taken back, or another", ""},
		{"update begins: another", BeginUpdate{Node: "updating", ID: "U0"}, "was taken back, or another", ""},
		{"update reports: another", ReportUpdate{Node: "updating", ID: "U0", Stage: "apply"}, "was taken back, or another", ""},
		{"update ends: another", EndUpdate{Node: "updating", ID: "U0"}, "was taken back, or another", ""},
		{"update ends: none", EndUpdate{Node: "node002", ID: "U"}, "was taken back, or another", ""},
		{"update taken back: unknown node", CancelUpdate{Node: "nobody"}, "there is no node", ""},

		{"collect: in the past", OpenCollection{Until: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}, "cannot end at 2020", ""},
		{"collect: for ever", OpenCollection{Until: time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)}, "cannot stay open", ""},
		{"sight: group address", Sight{Sighting{MAC: MAC{1}}}, "group address", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := fresh(t)
			commit(t, c, add("node001", 11), add("node002", 12), Assign{MAC: mac(2), Node: "node002"})
			commit(t, c, add("armed", 13), Assign{MAC: mac(3), Node: "armed"}, arm("armed", "A"))
			commit(t, c, add("installing", 14), Assign{MAC: mac(4), Node: "installing"})
			install(t, c, "installing", "J")
			commit(t, c, add("failed", 15), Assign{MAC: mac(5), Node: "failed"}, arm("failed", "F"), Fail{Node: "failed", Install: "F", Reason: "no disk"})
			commit(t, c, add("updating", 16), Assign{MAC: mac(6), Node: "updating"})
			install(t, c, "updating", "K")
			commit(t, c, Certify{Node: "updating", Install: "K", Key: "k"}, Finish{Node: "updating", Install: "K"}, OrderUpdate{Node: "updating", ID: "U", Image: "head@4", Digest: "d4"})
			before := c.Snapshot()
			err := c.Commit(context.Background(), test.change)
			if !isRefused(err) {
				t.Fatalf("got %v, want a refusal", err)
			}
			if !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), test.hint) {
				t.Errorf("it says: %v\nwant: %s\nhint: %s", err, test.says, test.hint)
			}
			sameState(t, before, c.Snapshot())
		})
	}
}

// What is so already is no error, and writes nothing.
func TestNoChange(t *testing.T) {
	c := fresh(t)
	commit(t, c, add("node001", 11), add("node002", 12), Assign{MAC: mac(2), Node: "node002"})
	install(t, c, "node002", "I")
	commit(t, c, Finish{Node: "node002", Install: "I"})
	commit(t, c, add("failed", 15), Assign{MAC: mac(5), Node: "failed"}, arm("failed", "F"), Fail{Node: "failed", Install: "F", Reason: "no disk"})
	before := c.Snapshot()
	for _, change := range []Change{
		Assign{MAC: mac(2), Node: "node002"},
		Unassign{Node: "node001"},
		Disarm{Node: "node001"},
		Disarm{Node: "node002"},
		SetNode{Name: "node001", Addr: new(addr(11))},
		CloseCollection{},
		AutoAssign{MAC: mac(9)},
		DeleteLease{Addr: addr(222)},
		ForgetSighting{MAC: mac(9)},
		AddNodes{},
		PauseSync{Image: "head"},
		HoldNode{Node: "node001"},
		Finish{Node: "node002", Install: "I"},                  // its answer was lost
		Fail{Node: "failed", Install: "F", Reason: "no, that"}, // the first reason stands
	} {
		commit(t, c, change)
		if got := c.Seq(); got != before.Seq {
			t.Errorf("%T%+v was written", change, change)
		}
	}
	sameState(t, before, c.Snapshot())
}

func TestBadArguments(t *testing.T) {
	c := fresh(t)
	commit(t, c, add("node001", 11), Assign{MAC: mac(1), Node: "node001"}, arm("node001", "I"))
	for _, change := range []Change{
		arm("node001", "I"), // an id is for one install
		arm("node001", ""),
		Arm{Node: "node001", Install: "I2", Digest: "d", After: "reboot"},
		Arm{Node: "node001", Install: "I2", Image: "i", After: "reboot"},
		Arm{Node: "node001", Install: "I2", Image: "i", Digest: "d", After: "reboot", Disk: "/dev/\x00"},
		BeginBoot{Node: "node001", Boot: "short"},
		BeginBoot{Node: "node001", Boot: strings.Repeat("\xff", 20)},
		Certify{Node: "node001", Install: "I"},
		PutLease{Lease{}},
		PutLease{Lease{Addr: netip.MustParseAddr("fe80::1")}},
		PutLease{Lease{Addr: addr(201), ClientID: make([]byte, 300)}},
		Note{What: "refused"},
		Note{Text: "text"},
	} {
		if err := c.Commit(context.Background(), change); err == nil {
			t.Errorf("%T%+v was taken", change, change)
		}
	}
}
