package web

import (
	"strings"
	"testing"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

func TestBootCertificateEnds(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(b *bench, id string)
	}{
		{"finished", func(b *bench, id string) { commit(b.t, b.cluster, cluster.Finish{Node: "node001", Install: id}) }},
		{"failed", func(b *bench, id string) {
			commit(b.t, b.cluster, cluster.Fail{Node: "node001", Install: id, Reason: "r"})
		}},
		{"disarmed", func(b *bench, id string) { commit(b.t, b.cluster, cluster.Disarm{Node: "node001"}) }},
		{"armed again", func(b *bench, id string) {
			commit(b.t, b.cluster, cluster.Disarm{Node: "node001"})
			b.arm("node001", 11, cluster.Compute)
		}},
		{"removed", func(b *bench, id string) {
			commit(b.t, b.cluster, cluster.Disarm{Node: "node001"}, cluster.RemoveNode{Name: "node001"})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			id := b.arm("node001", 11, cluster.Compute)
			m := b.machine(addrOf(11))
			m.enrol("node001", boot1)
			if status, _ := m.ask("/v1/orders", hardware(11), nil); status != 200 {
				t.Fatal(status)
			}
			test.do(b, id)
			var o clone.Orders
			for path, words := range map[string]any{
				"/v1/orders":      hardware(11),
				"/v1/certificate": clone.Enrol{CSR: m.csr()},
				"/v1/report":      clone.Report{Install: id, Stage: clone.StageApply},
			} {
				if status, why := m.ask(path, words, &o); status != 403 {
					t.Errorf("%s: %d, %s", path, status, why)
				}
			}
			if o.Cluster != nil {
				t.Error("keys were given")
			}
			if len(b.refusedEvents()) == 0 {
				t.Error("no event says so")
			}
		})
	}
}

func TestExpiredCertificate(t *testing.T) {
	b := newBench(t)
	id := b.arm("node001", 11, cluster.Compute)
	m := b.machine(addrOf(11))
	m.enrol("node001", boot1)
	der, err := b.ca.issue(m.csr(), Identity{Boot: true, Node: "node001", Install: id}, time.Now().Add(-time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	if status, why := m.ask("/v1/orders", hardware(11), nil); status != 200 {
		t.Errorf("in its time: %d, %s", status, why)
	}
	m.cert = der
	if status, why := m.ask("/v1/orders", hardware(11), nil); status != 0 {
		t.Errorf("got %d, %s; want no connection", status, why)
	}
}

func TestForeignCertificate(t *testing.T) {
	b := newBench(t)
	id := b.arm("node001", 11, cluster.Compute)
	other, err := OpenCA(t.TempDir(), []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	m := b.machine(addrOf(11))
	if m.cert, err = other.IssueBoot(m.csr(), "node001", id); err != nil {
		t.Fatal(err)
	}
	// A client with several certificates would choose by the CA's name, and
	// both CAs have the same.
	if status, why := m.ask("/v1/orders", hardware(11), nil); status != 0 {
		t.Errorf("got %d, %s; want no connection", status, why)
	}
	m.cert = nil
	if status, why := m.ask("/v1/orders", hardware(11), nil); status != 401 {
		t.Errorf("without a certificate: %d, %s", status, why)
	}
}

func TestWhoMaySayWhat(t *testing.T) {
	b := newBench(t)
	boot, own, id := b.installed("node001", 11)
	_, other, _ := b.installed("node002", 12)
	up := clone.Up{Hostname: "node001", BootID: "b", DiskGUID: id}
	if status, _ := boot.ask("/v1/up", up, nil); status != 403 {
		t.Errorf("a boot says it is up: %d", status)
	}
	again := b.arm("node001", 11, cluster.Compute)
	for path, words := range map[string]any{
		"/v1/orders": hardware(11), "/v1/report": clone.Report{Install: again, Stage: clone.StageFinish}, "/v1/certificate": clone.Enrol{CSR: own.csr()},
	} {
		if status, _ := own.ask(path, words, nil); status != 403 {
			t.Errorf("a node's own certificate at %s: %d", path, status)
		}
		if status, _ := other.ask(path, words, nil); status != 403 {
			t.Errorf("another node's certificate at %s: %d", path, status)
		}
	}
	// One boot cannot speak for another node's install.
	b.arm("node002", 12, cluster.Compute)
	m := b.machine(addrOf(12))
	m.enrol("node002", boot2)
	if status, _ := m.ask("/v1/report", clone.Report{Install: again, Stage: clone.StageFailed, Detail: "x"}, nil); status != 403 {
		t.Errorf("another's install: %d", status)
	}
	// "up" is always about the caller's own node.
	if status, why := other.ask("/v1/up", up, nil); status != 204 {
		t.Errorf("up: %d, %s", status, why)
	}
	if n := b.node("node001"); !n.LastUp.IsZero() || n.State != cluster.Armed {
		t.Errorf("node001 was altered by others: %+v", n)
	}
}

// Only the certificate that a node was given last is worth something.
func TestNodeCertificateEnds(t *testing.T) {
	b := newBench(t)
	_, first, id := b.installed("node001", 11)
	up := clone.Up{Hostname: "node001", BootID: "b", DiskGUID: id}
	if status, why := first.ask("/v1/up", up, nil); status != 204 {
		t.Fatalf("up: %d, %s", status, why)
	}
	_, second, _ := b.installed("node001", 11)
	if status, why := first.ask("/v1/up", up, nil); status != 403 || !strings.Contains(why, "not its latest") {
		t.Errorf("the one before: %d, %s", status, why)
	}
	if status, why := second.ask("/v1/up", up, nil); status != 204 {
		t.Errorf("the latest: %d, %s", status, why)
	}
	commit(t, b.cluster, cluster.Unassign{Node: "node001"}, cluster.Assign{MAC: mac(50), Node: "node001"})
	if status, _ := second.ask("/v1/up", up, nil); status != 403 {
		t.Errorf("after its node was given to another machine: %d", status)
	}
	commit(t, b.cluster, cluster.RemoveNode{Name: "node001"})
	if status, why := second.ask("/v1/up", up, nil); status != 403 || !strings.Contains(why, "no node node001") {
		t.Errorf("after its node was removed: %d, %s", status, why)
	}
}
