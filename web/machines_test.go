package web

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging"
	"doppel/imaging/store"
)

func TestConversation(t *testing.T) {
	b := newBench(t)
	id := b.arm("node001", 11, cluster.Compute)
	m := b.machine(addrOf(11))
	m.enrol("node001", boot1)
	if n := b.node("node001"); n.State != cluster.Armed || !n.Install.Enrolled {
		t.Fatalf("enrolled: %+v", n)
	}

	var o clone.Orders
	if status, why := m.ask("/v1/orders", hardware(11), &o); status != 200 {
		t.Fatalf("orders: %d, %s", status, why)
	}
	if o.Refused != "" || o.Plan == nil || o.Plan.ID != id || o.Digest != digest || o.Manifest != store.Sum([]byte(digest)) ||
		len(o.Packs) != 1 || o.Store != "http://127.0.0.1:8480/store" || !bytes.Equal(o.Cluster, b.machines.Keys.Cluster[:]) {
		t.Errorf("orders: %+v", o)
	}
	if o.Head != nil {
		t.Error("a compute node was given the head's key")
	}
	target := b.targets[0]
	want := clone.Target{
		Install: id, Node: "node001", Domain: "cluster", Role: "compute", MAC: "52:54:00:00:00:0b",
		Addr: netip.MustParsePrefix("127.77.0.11/24"), Gateway: addrOf(254), DNS: []netip.Addr{addrOf(53)},
		After: "reboot", Server: "https://127.0.0.1:8443", Image: "head@1", ImageHead: imaging.Head{Entries: 7},
	}
	if fmt.Sprint(target) != fmt.Sprint(want) {
		t.Errorf("the plan was made for\n%+v\nwant\n%+v", target, want)
	}
	for _, r := range []clone.Report{
		{Stage: clone.StageTools}, {Stage: clone.StagePartition, Detail: "/dev/vda"},
		{Stage: clone.StageApply, Done: 1, Total: 10}, {Stage: clone.StageApply, Done: 7, Total: 10},
	} {
		r.Install = id
		if status, why := m.ask("/v1/report", r, nil); status != 204 {
			t.Fatalf("report %+v: %d, %s", r, status, why)
		}
	}
	if n := b.node("node001"); n.State != cluster.Installing || n.Install.Stage != "apply" || n.Install.Done != 7 {
		t.Errorf("installing: %+v %+v", n, n.Install)
	}
	own := m.own()
	for range 2 { // the answer may be lost, and the last word said again
		if status, why := m.ask("/v1/report", clone.Report{Install: id, Stage: clone.StageFinish}, nil); status != 204 {
			t.Fatalf("finish: %d, %s", status, why)
		}
	}
	if n := b.node("node001"); n.State != cluster.Installed || n.Runs != "head@1" || !n.LastUp.IsZero() {
		t.Errorf("installed: %+v", n)
	}
	if status, why := own.ask("/v1/up", clone.Up{Hostname: "node001", BootID: "b", DiskGUID: id, Kernel: "6.1"}, nil); status != 204 {
		t.Fatalf("up: %d, %s", status, why)
	}
	if n := b.node("node001"); n.LastUp.IsZero() || n.UpFrom != id || n.Kernel != "6.1" {
		t.Errorf("up: %+v", n)
	}
	b.noSecrets(m, own)
}

// noSecrets looks for keys in everything that was logged and kept as events.
func (b *bench) noSecrets(machines ...*machine) {
	b.t.Helper()
	said := b.log.String() + fmt.Sprint(b.cluster.Events(0, cluster.Filter{}))
	if !strings.Contains(said, "enrolled") {
		b.t.Error("nothing was logged: the test shows nothing")
	}
	for name, forms := range b.secrets(machines...) {
		for _, s := range forms {
			if strings.Contains(said, s) {
				b.t.Errorf("%s was logged: %s", name, s)
			}
		}
	}
}

func TestHeadIsGivenBothKeys(t *testing.T) {
	b := newBench(t)
	b.arm("standby", 12, cluster.Head)
	m := b.machine(addrOf(12))
	m.enrol("standby", boot1)
	var o clone.Orders
	if status, why := m.ask("/v1/orders", hardware(12), &o); status != 200 {
		t.Fatalf("orders: %d, %s", status, why)
	}
	if !bytes.Equal(o.Head, b.machines.Keys.Head[:]) || len(o.Packs) != 2 {
		t.Errorf("orders: %+v", o)
	}
	b.noSecrets(m)
}

// A power cut: another boot of the same install, by another key.
func TestBootAgain(t *testing.T) {
	b := newBench(t)
	id := b.arm("node001", 11, cluster.Compute)
	first := b.machine(addrOf(11))
	first.enrol("node001", boot1)
	if status, _ := first.ask("/v1/orders", hardware(11), nil); status != 200 {
		t.Fatal(status)
	}
	second := b.machine(addrOf(11))
	second.enrol("node001", boot2)
	var o clone.Orders
	if status, why := second.ask("/v1/orders", hardware(11), &o); status != 200 || o.Plan.ID != id {
		t.Errorf("orders: %d, %s, %+v", status, why, o)
	}
	if n := b.node("node001"); n.State != cluster.Installing {
		t.Errorf("it is %s", n.State)
	}
}

func (b *bench) refusedEvents() []cluster.Event {
	return b.cluster.Events(0, cluster.Filter{Kind: "refused"})
}

func TestEnrolRefused(t *testing.T) {
	for _, test := range []struct {
		name string
		from byte
		boot string
		do   func(*bench)
		says string
		node string // whose event it is
	}{
		{"a second caller", 11, boot1, func(b *bench) { b.machine(addrOf(11)).enrol("node001", boot1) }, "has enrolled already", "node001"},
		{"no node's address", 99, boot1, nil, "127.77.0.99 is no node's address", ""},
		{"another node's address", 12, boot1, nil, "was not given the installer for this boot", "node002"},
		{"another boot's nonce", 11, boot2, nil, "was not given the installer for this boot", "node001"},
		{"no nonce", 11, "", nil, "was not given the installer for this boot", "node001"},
		{"not armed", 11, boot1, func(b *bench) { commit(b.t, b.cluster, cluster.Disarm{Node: "node001"}) }, "no install is permitted", "node001"},
		{"failed", 11, boot1, func(b *bench) {
			commit(b.t, b.cluster, cluster.Fail{Node: "node001", Install: b.node("node001").Install.ID, Reason: "r"})
		}, "is Failed: no install is permitted", "node001"},
		{"the address is leased to another", 11, boot1, func(b *bench) {
			commit(b.t, b.cluster, cluster.PutLease{Lease: cluster.Lease{Addr: addrOf(11), MAC: mac(77), Expires: time.Now().Add(time.Hour)}})
		}, "is no node's address", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.arm("node001", 11, cluster.Compute)
			b.arm("node002", 12, cluster.Compute)
			commit(t, b.cluster, cluster.BeginBoot{Node: "node001", Boot: boot1}, cluster.BeginBoot{Node: "node002", Boot: "another-boot-of-node002"})
			if test.do != nil {
				test.do(b)
			}
			m := b.machine(addrOf(test.from))
			for range 3 {
				status, why := m.ask("/v1/enrol", clone.Enrol{Boot: test.boot, CSR: m.csr()}, nil)
				if status != 403 || !strings.Contains(why, test.says) {
					t.Errorf("got %d, %s; want 403, %s", status, why, test.says)
				}
			}
			events := b.refusedEvents()
			if len(events) != 1 || events[0].Node != test.node || !strings.Contains(events[0].Text, test.says) {
				t.Errorf("events: %+v", events)
			}
		})
	}
}

// The address that its machine had before it was assigned will do.
func TestEnrolByLease(t *testing.T) {
	b := newBench(t)
	b.arm("node001", 11, cluster.Compute)
	commit(t, b.cluster, cluster.PutLease{Lease: cluster.Lease{Addr: addrOf(205), MAC: mac(11), Expires: time.Now().Add(time.Hour)}})
	b.machine(addrOf(205)).enrol("node001", boot1)
}

// Of many that call at once, one is given a certificate.
func TestEnrolRace(t *testing.T) {
	b := newBench(t)
	b.arm("node001", 11, cluster.Compute)
	commit(t, b.cluster, cluster.BeginBoot{Node: "node001", Boot: boot1})
	var group sync.WaitGroup
	var mu sync.Mutex
	got := map[int]int{}
	for range 8 {
		m := b.machine(addrOf(11))
		csr := m.csr()
		group.Go(func() {
			status, _ := m.ask("/v1/enrol", clone.Enrol{Boot: boot1, CSR: csr}, nil)
			mu.Lock()
			defer mu.Unlock()
			got[status]++
		})
	}
	group.Wait()
	if got[200] != 1 || got[403] != 7 {
		t.Errorf("answers: %v", got)
	}
}

func TestBadRequestDoesNotUseUpTheBoot(t *testing.T) {
	b := newBench(t)
	b.arm("node001", 11, cluster.Compute)
	commit(t, b.cluster, cluster.BeginBoot{Node: "node001", Boot: boot1})
	m := b.machine(addrOf(11))
	if status, why := m.ask("/v1/enrol", clone.Enrol{Boot: boot1, CSR: []byte("nonsense")}, nil); status != 400 {
		t.Errorf("got %d, %s", status, why)
	}
	m.enrol("node001", boot1)
}

func TestOrdersRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		do     func(*bench)
		hw     clone.Hardware
		status int
		says   string
		state  cluster.State
	}{
		{"no plan", func(b *bench) { b.planErr = errors.New("two disks qualify: /dev/vda, /dev/vdb") }, hardware(11), 200, "two disks qualify: /dev/vda, /dev/vdb", cluster.Failed},
		{"the image is gone", func(b *bench) { b.imageErr = &store.MissingError{What: "manifest"} }, hardware(11), 200, "is not in the store", cluster.Failed},
		{"the image is corrupt", func(b *bench) { b.imageErr = &store.CorruptError{What: "manifest", Detail: "bad"} }, hardware(11), 200, "is corrupt", cluster.Failed},
		{"the disk of the head hiccups", func(b *bench) { b.imageErr = errors.New("input/output error on /secret/path") }, hardware(11), 500, "could not do it", cluster.Armed},
		{"another machine", nil, hardware(44), 403, "no NIC 52:54:00:00:00:0b", cluster.Armed},
		{"no NICs", nil, clone.Hardware{MACs: []string{"", "x"}}, 403, "no NIC", cluster.Armed},
		{"a key is not held", func(b *bench) { b.machines.Keys.Cluster = nil }, hardware(11), 500, "could not do it", cluster.Armed},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBench(t)
			b.arm("node001", 11, cluster.Compute)
			m := b.machine(addrOf(11))
			m.enrol("node001", boot1)
			if test.do != nil {
				test.do(b)
			}
			var o clone.Orders
			status, why := m.ask("/v1/orders", test.hw, &o)
			if status != test.status || !strings.Contains(why+o.Refused, test.says) {
				t.Errorf("got %d, %s%s; want %d, %s", status, why, o.Refused, test.status, test.says)
			}
			if o.Cluster != nil || o.Plan != nil || strings.Contains(why, "/secret/path") {
				t.Errorf("too much was said: %+v, %s", o, why)
			}
			n := b.node("node001")
			if n.State != test.state || n.State == cluster.Failed && !strings.Contains(n.Reason, test.says) {
				t.Errorf("it is %s: %s", n.State, n.Reason)
			}
		})
	}
}

func TestReportedFailure(t *testing.T) {
	b := newBench(t)
	id := b.arm("node001", 11, cluster.Compute)
	m := b.machine(addrOf(11))
	m.enrol("node001", boot1)
	if status, _ := m.ask("/v1/orders", hardware(11), nil); status != 200 {
		t.Fatal(status)
	}
	reason := "chunk sha256:ab is corrupt"
	for range 2 {
		if status, why := m.ask("/v1/report", clone.Report{Install: id, Stage: clone.StageFailed, Detail: reason}, nil); status != 204 {
			t.Fatalf("%d, %s", status, why)
		}
	}
	if n := b.node("node001"); n.State != cluster.Failed || n.Reason != reason {
		t.Errorf("it is %s: %s", n.State, n.Reason)
	}
	if status, _ := m.ask("/v1/report", clone.Report{Install: id, Stage: clone.StageFinish}, nil); status != 403 {
		t.Errorf("a failed install finished: %d", status)
	}
}

func TestBadBodies(t *testing.T) {
	b := newBench(t)
	id := b.arm("node001", 11, cluster.Compute)
	m := b.machine(addrOf(11))
	m.enrol("node001", boot1)
	for name, test := range map[string]struct {
		path, body string
		status     int
	}{
		"empty":          {"/v1/report", ``, 400},
		"not JSON":       {"/v1/report", `stage=apply`, 400},
		"unknown field":  {"/v1/report", `{"install":"` + id + `","stage":"apply","colour":"red"}`, 400},
		"two values":     {"/v1/report", `{"install":"` + id + `","stage":"apply"}{}`, 400},
		"wrong type":     {"/v1/report", `{"install":7}`, 400},
		"unknown stage":  {"/v1/report", `{"install":"` + id + `","stage":"dance"}`, 400},
		"too large":      {"/v1/report", `{"install":"` + strings.Repeat("x", maxWord) + `"}`, 413},
		"too large tail": {"/v1/report", `{"install":"` + id + `","stage":"tools"}` + strings.Repeat(" ", maxWord), 413},
		"no such path":   {"/v1/keys", `{}`, 404},
	} {
		res, err := m.client().Post(b.url+test.path, "application/json", strings.NewReader(test.body))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		res.Body.Close()
		if res.StatusCode != test.status {
			t.Errorf("%s: %d, want %d", name, res.StatusCode, test.status)
		}
	}
	if n := b.node("node001"); n.State != cluster.Armed || n.Install.Stage != "" {
		t.Errorf("something was changed: %+v", n.Install)
	}
	res, err := m.client().Get(b.url + "/v1/orders")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("GET: %d", res.StatusCode)
	}
}
