package web

import (
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

// Two machines with one MAC (a copied virtual machine), or two boots of one:
// the certificate of the boot that enrolled last is the only one that is good,
// so that one install never writes two disks to their ends.
func TestBootCertificateEndsWithTheNextBoot(t *testing.T) {
	b := newBench(t)
	id := b.arm("node001", 11, cluster.Compute)
	first := b.machine(addrOf(11))
	first.enrol("node001", boot1)
	if status, why := first.ask("/v1/orders", hardware(11), nil); status != 200 {
		t.Fatalf("orders: %d, %s", status, why)
	}
	// That another boot was begun ends nothing: a script is fetched in the clear.
	commit(t, b.cluster, cluster.BeginBoot{Node: "node001", Boot: boot2})
	if status, why := first.ask("/v1/report", clone.Report{Install: id, Stage: clone.StageTools}, nil); status != 204 {
		t.Fatalf("report: %d, %s", status, why)
	}
	second := b.machine(addrOf(11))
	second.enrol("node001", boot2)
	for path, words := range map[string]any{
		"/v1/orders":      hardware(11),
		"/v1/certificate": clone.Enrol{CSR: first.csr()},
		"/v1/report":      clone.Report{Install: id, Stage: clone.StageApply},
	} {
		if status, why := first.ask(path, words, nil); status != 403 || !strings.Contains(why, "another boot") {
			t.Errorf("%s: %d, %s", path, status, why)
		}
	}
	for _, last := range []clone.Stage{clone.StageFinish, clone.StageFailed} {
		if status, _ := first.ask("/v1/report", clone.Report{Install: id, Stage: last}, nil); status != 403 {
			t.Errorf("%s: %d", last, status)
		}
	}
	if status, why := second.ask("/v1/orders", hardware(11), nil); status != 200 {
		t.Errorf("the boot that enrolled last: %d, %s", status, why)
	}
	if status, why := second.ask("/v1/report", clone.Report{Install: id, Stage: clone.StageFinish}, nil); status != 204 {
		t.Errorf("the boot that enrolled last: %d, %s", status, why)
	}
}

// A machine that fails before it has a plan does not know the install's id.
func TestFailureBeforeThePlan(t *testing.T) {
	b := newBench(t)
	b.arm("node001", 11, cluster.Compute)
	m := b.machine(addrOf(11))
	m.enrol("node001", boot1)
	if status, why := m.ask("/v1/report", clone.Report{Stage: clone.StageApply}, nil); status != 403 {
		t.Errorf("a stage of no install: %d, %s", status, why)
	}
	if status, why := m.ask("/v1/report", clone.Report{Stage: clone.StageFailed, Detail: "no architecture"}, nil); status != 204 {
		t.Errorf("failed: %d, %s", status, why)
	}
	if n := b.node("node001"); n.State != cluster.Failed || n.Reason != "no architecture" {
		t.Errorf("it is %s: %s", n.State, n.Reason)
	}
}

// The nonce of a boot is for the machine that boots, not for whoever is shown
// the JSON of a node.
func TestNonceIsNotShown(t *testing.T) {
	o := newOffice(t)
	addThree(t, o)
	ctx := t.Context()
	if _, err := o.client.Assign(ctx, mac(11), "node001"); err != nil {
		t.Fatal(err)
	}
	if _, err := o.client.Deploy(ctx, Deploy{Nodes: []string{"node001"}}); err != nil {
		t.Fatal(err)
	}
	commit(t, o.cluster, cluster.BeginBoot{Node: "node001", Boot: boot1})
	status, err := o.client.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	all, err := o.client.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	one, err := o.client.Node(ctx, "node001")
	if err != nil {
		t.Fatal(err)
	}
	set, err := o.client.SetNode(ctx, cluster.SetNode{Name: "node001", Domain: new("d")})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal([]any{status, all, one, set})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), boot1) || !strings.Contains(string(text), one.Install.ID) {
		t.Errorf("shown: %s", text)
	}
	if n, _ := o.cluster.Node("node001"); n.Install.Boot != boot1 {
		t.Error("the nonce is forgotten")
	}
}

// A head whose clock said 1970 finds a time server during an install: the
// installer's certificate is good before and after.
func TestBootCertificateOutlastsTheClock(t *testing.T) {
	now := time.Unix(100, 0)
	ca, err := openCA(t.TempDir(), []string{"10.77.0.1"}, func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.IssueBoot(newCSR(t), "node001", "I")
	if err != nil {
		t.Fatal(err)
	}
	crt, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	for _, now = range []time.Time{now, time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)} {
		_, err = crt.Verify(x509.VerifyOptions{
			Roots: ca.TLS().ClientCAs, CurrentTime: ca.TLS().Time(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		})
		if err != nil {
			t.Errorf("at %v: %v", now, err)
		}
	}
}
