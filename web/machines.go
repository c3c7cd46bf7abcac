package web

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"doppel/clone"
	"doppel/cluster"
	"doppel/imaging"
	"doppel/imaging/store"
)

// Version is what an install needs to know of an image's version.
type Version struct {
	Head     imaging.Head
	Manifest store.ID   // the manifest's blob
	Packs    []store.ID // that hold what the role may read, in reading order
}

// Images finds versions by their digest.
type Images interface {
	// Head is asked once a boot of every machine that installs, by many at
	// once: it should remember its answers. An error that wraps a
	// *cluster.RefusedError, *store.MissingError or *store.CorruptError ends
	// the install with that reason; any other means: try again.
	Head(ctx context.Context, digest string, role cluster.Role) (Version, error)
}

// Planner decides what a machine is to become: clone.MakePlan. Its error ends
// the install.
type Planner func(clone.Target, clone.Hardware) (*clone.Plan, error)

// Machines is the TLS door.
type Machines struct {
	Cluster *cluster.Cluster
	CA      *CA
	Images  Images
	Plan    Planner
	Keys    store.Keys
	Server  string                    // base URL of this door, as machines reach it: https://ADDR:8443
	Blobs   string                    // base URL of the blobs: http://ADDR:8480/store
	Gateway netip.Addr                // of nodes that have none of their own; may be invalid
	DNS     []netip.Addr              // of all nodes
	Domain  string                    // of nodes that have none of their own
	Update  func(cluster.Node) Policy // what holds for a node's update; nil: nothing
	Log     *slog.Logger

	// Pair is what holds for a head of a pair; nil, or no word: it is of none.
	Pair func(cluster.Node) *clone.PairWord

	// Agent is the agent that nodes are to run; nil: the one that they have.
	Agent *AgentFile

	// Patience is how long a node that asks for work is let wait for some;
	// 0: 25 s.
	Patience time.Duration
	// Ending, when it is closed, lets go those who wait. Nil: never.
	Ending <-chan struct{}

	refusals  refusals
	questions questions
	tells     tells
	renewals  renewals
}

// maxWord bounds the body of a machine's request.
const maxWord = 1 << 20

// Handler serves the door. The listener must have the CA's TLS configuration.
func (m *Machines) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/enrol", m.handle(m.enrol))
	mux.Handle("POST /v1/orders", m.handle(m.orders))
	mux.Handle("POST /v1/report", m.handle(m.report))
	mux.Handle("POST /v1/certificate", m.handle(m.certificate))
	mux.Handle("POST /v1/up", m.handle(m.up))
	mux.Handle("POST /v1/task", m.handle(m.task))
	mux.Handle("POST /v1/update", m.handle(m.update))
	mux.Handle("POST /v1/drift", m.handle(m.drift))
	mux.Handle("POST /v1/pair", m.handle(m.pair))
	mux.HandleFunc("GET /v1/stream", m.stream)
	mux.HandleFunc("GET /v1/agent", m.agent)
	mux.Handle("/", nothing(m.Log))
	return mux
}

// handle answers with what fn gives, nil meaning 204. It is the one place
// where this door's errors are logged, and refusals become events.
func (m *Machines) handle(fn func(http.ResponseWriter, *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := fn(w, r)
		if err != nil {
			p := problemOf(err, false)
			m.note(r, p, err)
			answer(w, p.status, p, m.Log)
			return
		}
		status := http.StatusOK
		if v == nil {
			status = http.StatusNoContent
		}
		answer(w, status, v, m.Log)
	})
}

// note logs what was not done for a caller, and keeps a refusal as an event.
func (m *Machines) note(r *http.Request, p *problem, err error) {
	addr := callerAddr(r)
	if p.status >= 500 {
		m.Log.Error("answering a machine", "path", r.URL.Path, "addr", addr, "error", err)
		return
	}
	if !m.refusals.first(addr, r.URL.Path+p.What, m.Cluster.Now()) {
		return
	}
	m.Log.Warn("refused a machine", "path", r.URL.Path, "addr", addr, "reason", p.What)
	if p.status != http.StatusForbidden && p.status != http.StatusUnauthorized && p.status != http.StatusConflict {
		return
	}
	n := cluster.Note{What: "refused", Text: fmt.Sprintf("%s was refused %s: %s", addr, r.URL.Path, p.What)}
	if node, ok := m.Cluster.NodeAt(addr); ok {
		n.Node, n.MAC = node.Name, node.MAC
	}
	if err := m.Cluster.Commit(r.Context(), n); err != nil {
		m.Log.Error("keeping an event", "error", err)
	}
}

// enrol gives the first caller of a boot its certificate.
func (m *Machines) enrol(w http.ResponseWriter, r *http.Request) (any, error) {
	var body clone.Enrol
	if err := readBody(w, r, maxWord, &body); err != nil {
		return nil, err
	}
	addr := callerAddr(r)
	n, ok := m.Cluster.NodeAt(addr)
	if !ok {
		return nil, problemf(http.StatusForbidden, "", "%s is no node's address", addr)
	}
	if n.State != cluster.Armed && n.State != cluster.Installing {
		return nil, problemf(http.StatusForbidden, "doppel deploy "+n.Name, "%s is %s: no install is permitted", n.Name, n.State)
	}
	der, err := m.CA.IssueBoot(body.CSR, n.Name, n.Install.ID)
	if err != nil {
		return nil, err
	}
	crt, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading a certificate just made: %w", err)
	}
	// Of all callers of a boot, one passes here; whatever was said above may
	// have changed, and is checked again.
	if err := forbid(m.Cluster.Commit(r.Context(), cluster.Enrol{Node: n.Name, Boot: body.Boot, Key: keyDigest(crt)})); err != nil {
		return nil, err
	}
	m.Log.Info("enrolled", "node", n.Name, "addr", addr)
	return clone.Enrolled{Node: n.Name, Certificate: der}, nil
}

// orders gives a machine its plan, and with it the keys of its role.
func (m *Machines) orders(w http.ResponseWriter, r *http.Request) (any, error) {
	n, err := m.booting(r)
	if err != nil {
		return nil, err
	}
	var hw clone.Hardware
	if err := readBody(w, r, maxWord, &hw); err != nil {
		return nil, err
	}
	if !hasMAC(hw, *n.MAC) {
		return nil, problemf(http.StatusForbidden, "doppel assign the machine that is to be "+n.Name, "this machine has no NIC %s, which is %s's", n.MAC, n.Name)
	}
	if m.Keys.Cluster == nil || n.Role == cluster.Head && m.Keys.Head == nil {
		return nil, fmt.Errorf("giving %s its orders: the key of its role is not held", n.Name)
	}
	version, err := m.Images.Head(r.Context(), n.Install.Digest, n.Role)
	if endsInstall(err) {
		return m.refuse(r.Context(), n, fmt.Errorf("the image %s cannot be read: %w", n.Install.Image, err))
	}
	if err != nil {
		return nil, fmt.Errorf("reading the image %s for %s: %w", n.Install.Image, n.Name, err)
	}
	plan, err := m.Plan(m.target(n, version.Head), hw)
	if err != nil {
		return m.refuse(r.Context(), n, err)
	}
	detail := plan.Disk.String()
	if plan.DiskRule != "" {
		detail += ", " + plan.DiskRule
	}
	if err := forbid(m.Cluster.Commit(r.Context(), cluster.BeginInstall{Node: n.Name, Install: n.Install.ID, Detail: detail})); err != nil {
		return nil, err
	}
	m.Log.Info("gave a plan", "node", n.Name, "image", n.Install.Image, "disk", plan.Disk.Path)
	return clone.Orders{Plan: plan, Access: m.access(n.Role, version, n.Install.Digest)}, nil
}

// access is what a node of a role needs to read a version.
func (m *Machines) access(role cluster.Role, v Version, digest string) clone.Access {
	a := clone.Access{
		Manifest: v.Manifest, Digest: digest, Packs: v.Packs,
		Store: m.Blobs, Cluster: slices.Clone(m.Keys.Cluster[:]),
	}
	if role == cluster.Head {
		a.Head = slices.Clone(m.Keys.Head[:])
	}
	return a
}

// endsInstall tells whether an image's error will be the same next time.
func endsInstall(err error) bool {
	_, refused := errors.AsType[*cluster.RefusedError](err)
	_, missing := errors.AsType[*store.MissingError](err)
	_, corrupt := errors.AsType[*store.CorruptError](err)
	return refused || missing || corrupt
}

// refuse fails a node that cannot be given a plan, and tells its machine why.
func (m *Machines) refuse(ctx context.Context, n cluster.Node, why error) (any, error) {
	m.Log.Warn("no plan", "node", n.Name, "reason", why)
	if err := forbid(m.Cluster.Commit(ctx, cluster.Fail{Node: n.Name, Install: n.Install.ID, Reason: why.Error()})); err != nil {
		return nil, err
	}
	return clone.Orders{Refused: why.Error()}, nil
}

func hasMAC(hw clone.Hardware, mac cluster.MAC) bool {
	return slices.ContainsFunc(hw.MACs, func(s string) bool {
		m, err := cluster.ParseMAC(s)
		return err == nil && m == mac
	})
}

func (m *Machines) target(n cluster.Node, head imaging.Head) clone.Target {
	t := m.machineOf(n)
	t.Install, t.Disk, t.After, t.Image, t.ImageHead = n.Install.ID, n.Install.Disk, n.Install.After, n.Install.Image, head
	return t
}

// machineOf is what the inventory says of a node, whatever it is to become.
func (m *Machines) machineOf(n cluster.Node) clone.Target {
	gateway := n.Gateway
	if own := netip.PrefixFrom(n.Addr, n.Netmask); !gateway.IsValid() && m.Gateway.IsValid() && own.Contains(m.Gateway) && m.Gateway != n.Addr {
		gateway = m.Gateway
	}
	return clone.Target{
		Node: n.Name, Domain: cmp.Or(n.Domain, m.Domain), Role: string(n.Role),
		MAC: n.MAC.String(), Addr: netip.PrefixFrom(n.Addr, n.Netmask), Gateway: gateway, DNS: m.DNS, Server: m.Server,
	}
}

// report takes a machine's word on a stage.
func (m *Machines) report(w http.ResponseWriter, r *http.Request) (any, error) {
	id, crt, err := m.caller(r, true)
	if err != nil {
		return nil, err
	}
	var body clone.Report
	if err := readBody(w, r, maxWord, &body); err != nil {
		return nil, err
	}
	if body.Stage == clone.StageFailed && body.Install == "" {
		body.Install = id.Install // it failed before it was given a plan
	}
	if n, ok := m.Cluster.Node(id.Node); ok && n.Install != nil && n.Install.ID == id.Install {
		if err := newest(n, crt); err != nil {
			return nil, err
		}
	}
	if body.Install != id.Install {
		return nil, problemf(http.StatusForbidden, "", "this certificate is not for the install %.80q", body.Install)
	}
	switch body.Stage {
	case clone.StageFinish:
		err = m.Cluster.Commit(r.Context(), cluster.Finish{Node: id.Node, Install: id.Install})
	case clone.StageFailed:
		err = m.Cluster.Commit(r.Context(), cluster.Fail{Node: id.Node, Install: id.Install, Reason: body.Detail})
	default:
		writes, known := stages[body.Stage]
		if !known {
			return nil, problemf(http.StatusBadRequest, "", "%.80q is no stage", body.Stage)
		}
		err = m.Cluster.Progress(r.Context(), cluster.ReportStage{
			Node: id.Node, Install: id.Install, Stage: string(body.Stage), Detail: body.Detail,
			Done: body.Done, Total: body.Total, Writes: writes,
		})
	}
	return nil, forbid(err)
}

// certificate gives an installing node the certificate that it keeps.
func (m *Machines) certificate(w http.ResponseWriter, r *http.Request) (any, error) {
	n, err := m.booting(r)
	if err != nil {
		return nil, err
	}
	var body clone.Enrol
	if err := readBody(w, r, maxWord, &body); err != nil {
		return nil, err
	}
	if body.Boot != "" {
		return nil, problemf(http.StatusBadRequest, "", "a node's own certificate is for no boot")
	}
	if n.State != cluster.Installing {
		return nil, problemf(http.StatusForbidden, "", "%s was not given a plan", n.Name)
	}
	der, err := m.CA.IssueNode(body.CSR, n.Name)
	if err != nil {
		return nil, err
	}
	crt, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading a certificate just made: %w", err)
	}
	if err := forbid(m.Cluster.Commit(r.Context(), cluster.Certify{Node: n.Name, Install: n.Install.ID, Key: keyDigest(crt)})); err != nil {
		return nil, err
	}
	return clone.Enrolled{Node: n.Name, Certificate: der}, nil
}

// installed finds the node of a node's own certificate, which is worth nothing
// once it has been given another.
func (m *Machines) installed(r *http.Request) (cluster.Node, error) {
	id, crt, err := m.caller(r, false)
	if err != nil {
		return cluster.Node{}, err
	}
	n, ok := m.Cluster.Node(id.Node)
	if !ok {
		return n, problemf(http.StatusForbidden, "", "there is no node %s any more", id.Node)
	}
	if n.Key != keyDigest(crt) {
		return n, problemf(http.StatusForbidden, "", "this certificate of %s is not its latest", id.Node)
	}
	return n, nil
}

// up takes a node's word that it runs from its own disk.
func (m *Machines) up(w http.ResponseWriter, r *http.Request) (any, error) {
	n, err := m.installed(r)
	if err != nil {
		return nil, err
	}
	var body clone.Up
	if err := readBody(w, r, maxWord, &body); err != nil {
		return nil, err
	}
	if body.Hostname != n.Name {
		m.Log.Warn("a node is up by another name", "node", n.Name, "hostname", body.Hostname)
	}
	return nil, m.Cluster.Commit(r.Context(), cluster.Up{Node: n.Name, DiskGUID: body.DiskGUID, BootID: body.BootID, Kernel: body.Kernel})
}
