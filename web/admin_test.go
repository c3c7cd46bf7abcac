package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"doppel/cluster"
)

// office is the socket's two ends.
type office struct {
	cluster *cluster.Cluster
	client  *Client
	admin   *Admin
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{cluster: openCluster(t)}
	path := filepath.Join(t.TempDir(), "doppel.sock")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	o.admin = &Admin{Cluster: o.cluster, CheckDeploy: checkDeploy, Version: "1.2.3", Started: time.Now(), Log: slog.New(slog.DiscardHandler)}
	serving(t, o.admin.Log, Door{Name: "socket", Listener: l, Handler: o.admin.Handler(), Streams: true})
	o.client = NewClient(path)
	t.Cleanup(o.client.Close)
	return o
}

// checkDeploy knows one image, which nothing with UEFI can boot, and one whose
// reading goes wrong.
func checkDeploy(_ context.Context, n cluster.Node, ref string) (string, string, []string, error) {
	switch ref {
	case "head", "head@1":
		return "head@1", "sha256:1111", []string{"the image is old"}, nil
	case "bios-only":
		return "", "", nil, &cluster.RefusedError{What: "bios-only@1 has no loader for " + n.Name, Hint: "install grub-efi-amd64-bin on the head and capture it again"}
	case "damaged":
		return "", "", nil, errors.New("input/output error")
	}
	return "", "", nil, &cluster.RefusedError{What: "there is no image " + ref, Hint: "see doppel image ls"}
}

func addThree(t *testing.T, o *office) {
	t.Helper()
	_, err := o.client.AddNodes(t.Context(), AddNodes{
		Series: &cluster.Series{Base: "node", Count: 3, Start: 1, Pad: 3, First: addrOf(11)},
		Shared: cluster.Node{Image: "head"},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// wants checks what the daemon answered with an error.
func wants(t *testing.T, err error, code int, what, hint string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		t.Fatalf("got %v, want an error of the daemon with %q", err, what)
	}
	if e.ExitCode() != code || !strings.Contains(e.What, what) || !strings.Contains(e.Hint, hint) {
		t.Errorf("got %d, %q, %q; want %d, %q, %q", e.ExitCode(), e.What, e.Hint, code, what, hint)
	}
}

func TestAdminNodes(t *testing.T) {
	o, ctx := newOffice(t), t.Context()
	series := AddNodes{Series: &cluster.Series{Base: "node", Count: 2, Start: 1, Pad: 3, First: addrOf(11)}, Shared: cluster.Node{Domain: "hpc"}, DryRun: true}
	nodes, err := o.client.AddNodes(ctx, series)
	if err != nil || len(nodes) != 2 || nodes[1].Name != "node002" || nodes[1].Addr != addrOf(12) || nodes[1].Domain != "hpc" || nodes[1].Netmask != 24 {
		t.Fatalf("dry run: %+v, %v", nodes, err)
	}
	if left, err := o.client.Nodes(ctx); err != nil || len(left) != 0 {
		t.Fatalf("the dry run left %+v, %v", left, err)
	}
	series.DryRun = false
	if nodes, err := o.client.AddNodes(ctx, series); err != nil || len(nodes) != 2 {
		t.Fatalf("added: %+v, %v", nodes, err)
	}
	if nodes, err := o.client.AddNodes(ctx, AddNodes{Nodes: []cluster.Node{{Name: "standby", Role: cluster.Head, Addr: addrOf(2)}}}); err != nil || len(nodes) != 1 || nodes[0].Role != cluster.Head {
		t.Fatalf("added: %+v, %v", nodes, err)
	}
	if nodes, err := o.client.Nodes(ctx, "@head", "node[001-002]"); err != nil || len(nodes) != 3 || nodes[0].Name != "standby" {
		t.Errorf("chosen: %+v, %v", nodes, err)
	}
	n, err := o.client.SetNode(ctx, cluster.SetNode{Name: "node001", Image: new("head@1"), Gateway: new(addrOf(254))})
	if err != nil || n.Image != "head@1" || n.Gateway != addrOf(254) {
		t.Errorf("set: %+v, %v", n, err)
	}
	if n, err := o.client.Node(ctx, "node001"); err != nil || n.Image != "head@1" {
		t.Errorf("shown: %+v, %v", n, err)
	}
	inv, err := o.client.Export(ctx)
	if err != nil || len(inv.Nodes) != 3 {
		t.Fatalf("exported: %+v, %v", inv, err)
	}
	if gone, err := o.client.RemoveNodes(ctx, Named{Nodes: []string{"node001"}, DryRun: true}); err != nil || len(gone) != 1 {
		t.Errorf("dry removal: %+v, %v", gone, err)
	}
	if gone, err := o.client.RemoveNodes(ctx, Named{Nodes: []string{"all"}}); err != nil || len(gone) != 3 {
		t.Errorf("removed: %+v, %v", gone, err)
	}
	if back, err := o.client.Import(ctx, Import{Inventory: inv}); err != nil || len(back) != 3 {
		t.Errorf("imported: %+v, %v", back, err)
	}
	if v, err := o.client.Version(ctx); err != nil || v.Version != "1.2.3" {
		t.Errorf("version: %+v, %v", v, err)
	}
}

func TestAdminRefusals(t *testing.T) {
	o, ctx := newOffice(t), t.Context()
	addThree(t, o)
	if _, err := o.client.Assign(ctx, mac(1), "node001"); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		do         func() error
		code       int
		what, hint string
	}{
		"unknown node":   {func() error { _, err := o.client.Node(ctx, "nobody"); return err }, 1, `no node "nobody"`, "node ls"},
		"several nodes":  {func() error { _, err := o.client.Node(ctx, "node[001-002]"); return err }, 2, "names 2 nodes", "one"},
		"no name":        {func() error { _, err := o.client.Node(ctx, ""); return err }, 2, "is not a node's name", ""},
		"slashes":        {func() error { _, err := o.client.Node(ctx, "../status"); return err }, 2, "is not a node's name", ""},
		"nothing to add": {func() error { _, err := o.client.AddNodes(ctx, AddNodes{}); return err }, 2, "no nodes", "base"},
		"taken address": {func() error {
			_, err := o.client.AddNodes(ctx, AddNodes{Nodes: []cluster.Node{{Name: "x", Addr: addrOf(11)}}})
			return err
		}, 1, "is node001's", "another"},
		"overflow": {func() error {
			_, err := o.client.AddNodes(ctx, AddNodes{Series: &cluster.Series{Base: "x", Count: 9, First: addrOf(250)}})
			return err
		}, 1, "127.77.0.255", "fewer"},
		"assign another":  {func() error { _, err := o.client.Assign(ctx, mac(2), "node001"); return err }, 1, "is the machine", "unassign node001"},
		"assign twice":    {func() error { _, err := o.client.Assign(ctx, mac(1), "node002"); return err }, 1, "is assigned to node001", "unassign node001"},
		"disarm none":     {func() error { _, err := o.client.Disarm(ctx, Named{}); return err }, 2, "no nodes were named", ""},
		"no group":        {func() error { _, err := o.client.Disarm(ctx, Named{Nodes: []string{"@rack"}}); return err }, 1, "no group", "@compute"},
		"bad inventory":   {func() error { _, err := o.client.Import(ctx, Import{}); return err }, 2, "format is 0", "export"},
		"collect nothing": {func() error { _, err := o.client.OpenCollection(ctx, 0, false); return err }, 2, "cannot last", "10m"},
		"collect long":    {func() error { _, err := o.client.OpenCollection(ctx, 9000*time.Hour, false); return err }, 1, "cannot stay open", "year"},
		"events of none":  {func() error { return o.client.Events(ctx, EventFilter{Node: "nobody"}, nil) }, 1, "no node", ""},
		"deploy none":     {func() error { _, err := o.client.Deploy(ctx, Deploy{}); return err }, 2, "no nodes", ""},
		"unassigned":      {func() error { _, err := o.client.Deploy(ctx, Deploy{Nodes: []string{"node002"}}); return err }, 1, "node002 has no machine", "doppel assign MAC node002"},
		"unknown image": {func() error {
			_, err := o.client.Deploy(ctx, Deploy{Nodes: []string{"node001"}, Image: "none"})
			return err
		}, 1, "no image none", "doppel image ls"},
		"no loader": {func() error {
			_, err := o.client.Deploy(ctx, Deploy{Nodes: []string{"node001"}, Image: "bios-only"})
			return err
		}, 1, "no loader", "grub-efi-amd64-bin"},
		"one of two": {func() error {
			_, err := o.client.Deploy(ctx, Deploy{Nodes: []string{"node001", "node002"}})
			return err
		}, 1, "node002 has no machine", ""},
		"after": {func() error {
			_, err := o.client.Deploy(ctx, Deploy{Nodes: []string{"node001"}, After: "dance"})
			return err
		}, 1, "dance", "reboot"},
		"read error": {func() error {
			_, err := o.client.Deploy(ctx, Deploy{Nodes: []string{"node001"}, Image: "damaged"})
			return err
		}, 1, "input/output error", ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := o.cluster.Seq()
			wants(t, test.do(), test.code, test.what, test.hint)
			if o.cluster.Seq() != before {
				t.Error("something was changed")
			}
		})
	}
}

func TestAdminDeploy(t *testing.T) {
	o, ctx := newOffice(t), t.Context()
	addThree(t, o)
	for i, name := range []string{"node001", "node002"} {
		if n, err := o.client.Assign(ctx, mac(byte(i+1)), name); err != nil || n.State != cluster.Assigned {
			t.Fatalf("%+v, %v", n, err)
		}
	}
	if err := o.cluster.Sight(ctx, cluster.Sighting{MAC: mac(1), Arch: "uefi-x86_64", UUID: "U-1"}); err != nil {
		t.Fatal(err)
	}
	req := Deploy{Nodes: []string{"node[001-002]"}, Disk: "/dev/vda", DryRun: true}
	plan, err := o.client.Deploy(ctx, req)
	if err != nil || len(plan) != 2 {
		t.Fatalf("%+v, %v", plan, err)
	}
	d := plan[0]
	if d.Node != "node001" || d.MAC != mac(1) || d.Arch != "uefi-x86_64" || d.UUID != "U-1" || d.Image != "head@1" || d.Install != "" ||
		d.After != "reboot" || !strings.Contains(d.Erases, "/dev/vda") || !strings.Contains(d.Erases, mac(1).String()) || len(d.Warnings) != 1 {
		t.Errorf("dry run: %+v", d)
	}
	if n, _ := o.cluster.Node("node001"); n.State != cluster.Assigned {
		t.Errorf("the dry run made it %s", n.State)
	}
	req.DryRun = false
	plan, err = o.client.Deploy(ctx, req)
	if err != nil || len(plan) != 2 || plan[0].Install == "" || plan[0].Install == plan[1].Install {
		t.Fatalf("%+v, %v", plan, err)
	}
	n, _ := o.cluster.Node("node001")
	if n.State != cluster.Armed || n.Install.ID != plan[0].Install || n.Install.Disk != "/dev/vda" || n.Install.Digest != "sha256:1111" {
		t.Errorf("armed: %+v %+v", n, n.Install)
	}
	if nodes, err := o.client.Disarm(ctx, Named{Nodes: []string{"all"}}); err != nil || len(nodes) != 3 || nodes[0].State != cluster.Assigned {
		t.Errorf("disarmed: %+v, %v", nodes, err)
	}
	if nodes, err := o.client.Unassign(ctx, Named{Nodes: []string{"node001"}}); err != nil || len(nodes) != 1 || nodes[0].MAC != nil {
		t.Errorf("unassigned: %+v, %v", nodes, err)
	}
}

func TestAdminStatus(t *testing.T) {
	o, ctx := newOffice(t), t.Context()
	addThree(t, o)
	commit(t, o.cluster, cluster.Assign{MAC: mac(1), Node: "node001"})
	for i := range 3 {
		if err := o.cluster.Sight(ctx, cluster.Sighting{MAC: mac(byte(i + 1)), Arch: "bios"}); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := o.client.OpenCollection(ctx, time.Minute, true); err != nil || !c.Auto || !c.Open(time.Now()) {
		t.Fatalf("%+v, %v", c, err)
	}
	s, err := o.client.Status(ctx)
	if err != nil || s.Counts[cluster.Assigned] != 1 || s.Counts[cluster.Discovered] != 2 || len(s.Nodes) != 3 || !s.Collecting || len(s.Unassigned) != 2 || s.LastEvent != o.cluster.LastEvent() {
		t.Errorf("%+v, %v", s, err)
	}
	seen, err := o.client.Sightings(ctx)
	if err != nil || len(seen) != 3 || seen[0].Node != "node001" || seen[1].Node != "" || seen[1].MAC != mac(2) {
		t.Errorf("%+v, %v", seen, err)
	}
	if c, err := o.client.CloseCollection(ctx); err != nil || c.Open(time.Now()) {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := o.client.Collection(ctx); err != nil || c.Open(time.Now()) {
		t.Errorf("%+v, %v", c, err)
	}
}

var errEnough = errors.New("enough")

func TestAdminEventsFollow(t *testing.T) {
	o := newOffice(t)
	addThree(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var got []string
	err := o.client.Events(ctx, EventFilter{Since: 1, Follow: true}, func(e cluster.Event) error {
		got = append(got, e.Node+" "+e.Kind)
		switch len(got) {
		case 2: // the old ones are out
			commit(t, o.cluster, cluster.Assign{MAC: mac(1), Node: "node001"})
		case 3:
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) || strings.Join(got, ", ") != "node002 add, node003 add, node001 assign" {
		t.Errorf("%v, %v", got, err)
	}
	got = nil
	err = o.client.Events(ctx, EventFilter{Node: "node001"}, func(e cluster.Event) error {
		got = append(got, e.Kind)
		return nil
	})
	if err != nil || strings.Join(got, " ") != "add assign" {
		t.Errorf("%v, %v", got, err)
	}
}

func TestAdminFollowsSightings(t *testing.T) {
	o := newOffice(t)
	addThree(t, o)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := o.client.OpenCollection(ctx, time.Hour, true); err != nil {
		t.Fatal(err)
	}
	if err := o.cluster.Sight(ctx, cluster.Sighting{MAC: mac(1)}); err != nil {
		t.Fatal(err)
	}
	var got []string
	err := o.client.WatchSightings(ctx, func(s Seen) error {
		got = append(got, s.MAC.String()+" "+s.Node)
		switch len(got) {
		case 1:
			return o.cluster.Sight(ctx, cluster.Sighting{MAC: mac(2)})
		case 2:
			commit(t, o.cluster, cluster.CloseCollection{}) // which ends it
		}
		return nil
	})
	if err != nil || strings.Join(got, ", ") != "52:54:00:00:00:01 node001, 52:54:00:00:00:02 node002" {
		t.Errorf("%v, %v", got, err)
	}
}

// A collection ends by itself, and with it those who watch it.
func TestAdminFollowsSightingsToTheEnd(t *testing.T) {
	o := newOffice(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := o.client.OpenCollection(ctx, 50*time.Millisecond, false); err != nil {
		t.Fatal(err)
	}
	if err := o.client.WatchSightings(ctx, func(Seen) error { return nil }); err != nil {
		t.Error(err)
	}
}

func TestAdminFollowsNodes(t *testing.T) {
	o := newOffice(t)
	addThree(t, o)
	commit(t, o.cluster, cluster.Assign{MAC: mac(1), Node: "node001"})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	armed, err := o.client.Deploy(ctx, Deploy{Nodes: []string{"node001"}})
	if err != nil {
		t.Fatal(err)
	}
	id := armed[0].Install
	var last cluster.State
	err = o.client.WatchNodes(ctx, []string{"node001"}, func(nodes []cluster.Node) error {
		if len(nodes) != 1 {
			t.Errorf("%d nodes", len(nodes))
		}
		last = nodes[0].State
		switch last {
		case cluster.Armed:
			commit(t, o.cluster, cluster.BeginInstall{Node: "node001", Install: id})
		case cluster.Installing:
			if nodes[0].Install.Done == 9 {
				commit(t, o.cluster, cluster.Finish{Node: "node001", Install: id})
				return nil
			}
			for _, done := range []int64{1, 9} {
				if err := o.cluster.Progress(ctx, cluster.ReportStage{Node: "node001", Install: id, Stage: "apply", Done: done, Total: 10}); err != nil {
					t.Error(err)
				}
			}
		case cluster.Installed:
			return errEnough
		}
		return nil
	})
	if !errors.Is(err, errEnough) {
		t.Errorf("%s, %v", last, err)
	}
	wants(t, o.client.WatchNodes(ctx, []string{"nobody"}, nil), 1, "no node", "")
}

func TestClientCancelled(t *testing.T) {
	o := newOffice(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("interrupted")
	addThree(t, o)
	err := o.client.Events(ctx, EventFilter{Follow: true}, func(cluster.Event) error { cancel(why); return nil })
	if !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if _, err := o.client.Status(ctx); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

func TestClientWithoutDaemon(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doppel.sock")
	_, err := NewClient(path).Status(t.Context())
	wants(t, err, 1, "no doppel serve answers on "+path, "start doppel serve")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = NewClient(path).Status(t.Context())
	wants(t, err, 1, "no doppel serve answers", "start doppel serve")
}

// A daemon that speaks something else does not confuse the client.
func TestClientOddAnswers(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"text": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") },
		"error without words": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(503)
		},
		"cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, `{"version":`)
		},
	} {
		path := filepath.Join(t.TempDir(), "doppel.sock")
		l, err := ListenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		s := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
		s.Start()
		c := NewClient(path)
		if _, err := c.Status(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
		if err := c.Events(t.Context(), EventFilter{}, func(cluster.Event) error { return nil }); err == nil {
			t.Errorf("%s: no error of a stream", name)
		}
		c.Close()
		s.Close()
	}
}

func FuzzAdmin(f *testing.F) {
	type target struct{ method, path string }
	targets := []target{
		{"POST", pathNodes}, {"PATCH", pathNodes + "/node001"}, {"POST", pathRemove}, {"POST", pathImport}, {"POST", pathAssign},
		{"POST", pathUnassign}, {"POST", pathCollection}, {"POST", pathDeploy}, {"POST", pathDisarm}, {"POST", pathEnlist}, {"POST", pathTurn},
	}
	for i, v := range []any{
		AddNodes{Series: &cluster.Series{Base: "x", Count: 3, First: addrOf(50)}}, cluster.SetNode{Name: "node001", Image: new("head")},
		Named{Nodes: []string{"node[001-003]"}}, Import{Inventory: cluster.Inventory{Format: 1, Nodes: []cluster.Node{{Name: "x", Addr: addrOf(60)}}}},
		AssignMAC{MAC: mac(9), Node: "node002"}, Named{Nodes: []string{"all"}}, Collect{For: Duration(time.Minute)},
		Deploy{Nodes: []string{"@compute"}, Image: "head", DryRun: true}, Named{Nodes: []string{"@image:head"}},
		EnlistRequest{Name: "primary", Found: found(nic("eth0", "52:54:00:00:00:21", "127.77.0.33/24"))}, TurnRequest{To: "node001"},
	} {
		b, err := json.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	c, err := cluster.Open(filepath.Join(f.TempDir(), "cluster.db"), cluster.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := c.Close(); err != nil {
			f.Error(err)
		}
	})
	ca, err := OpenCA(f.TempDir(), []string{"127.0.0.1"})
	if err != nil {
		f.Fatal(err)
	}
	a := &Admin{Cluster: c, CheckDeploy: checkDeploy, Enlists: &Machines{Cluster: c, CA: ca}, Log: slog.New(slog.DiscardHandler)}
	h := a.Handler()
	f.Fuzz(func(t *testing.T, which uint8, body []byte) {
		to := targets[int(which)%len(targets)]
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(to.method, to.path, bytes.NewReader(body)))
		if w.Code >= 500 && !strings.Contains(w.Body.String(), "input/output error") {
			t.Fatalf("%s %s with %q: %d %s", to.method, to.path, body, w.Code, w.Body)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s %s with %q answers %q", to.method, to.path, body, w.Body)
		}
	})
}
