package web

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"doppel/cluster"
)

// DeployCheck finds the version that ref names for a node, and says whether it
// can be deployed there: the image has to exist, and have the loader that the
// node's firmware needs. A *cluster.RefusedError says why not.
type DeployCheck func(ctx context.Context, node cluster.Node, ref string) (version, digest string, warnings []string, err error)

// Admin is what answers on the Unix socket.
type Admin struct {
	Cluster     *cluster.Cluster
	CheckDeploy DeployCheck
	Sync        Syncer // nil: none is configured
	Drifts      Drifter
	Captures    Capturer
	Enlists     Enlister
	Version     string
	Started     time.Time
	Log         *slog.Logger
}

// maxAdmin bounds the body of a request on the socket; the largest is an
// inventory.
const maxAdmin = 64 << 20

// Handler serves the socket's API.
func (a *Admin) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+pathVersion, a.handle(a.version))
	mux.Handle("GET "+pathStatus, a.handle(a.status))
	mux.Handle("GET "+pathNodes, a.handle(a.nodes))
	mux.Handle("POST "+pathNodes, a.handle(a.addNodes))
	mux.Handle("GET "+pathNodes+"/{name}", a.handle(a.node))
	mux.Handle("PATCH "+pathNodes+"/{name}", a.handle(a.setNode))
	mux.Handle("POST "+pathRemove, a.handle(a.removeNodes))
	mux.Handle("GET "+pathExport, a.handle(a.export))
	mux.Handle("POST "+pathImport, a.handle(a.importNodes))
	mux.Handle("POST "+pathAssign, a.handle(a.assign))
	mux.Handle("POST "+pathUnassign, a.handle(a.unassign))
	mux.Handle("GET "+pathSightings, a.handle(a.sightings))
	mux.Handle("GET "+pathCollection, a.handle(a.collection))
	mux.Handle("POST "+pathCollection, a.handle(a.openCollection))
	mux.Handle("DELETE "+pathCollection, a.handle(a.closeCollection))
	mux.Handle("POST "+pathDeploy, a.handle(a.deploy))
	mux.Handle("POST "+pathDisarm, a.handle(a.disarm))
	mux.Handle("GET "+pathEvents, a.handle(a.events))
	mux.Handle("GET "+pathSync, a.handle(a.syncStatus))
	mux.Handle("POST "+pathSync, a.handle(a.sync))
	mux.Handle("POST "+pathDrift, a.handle(a.drift))
	mux.Handle("GET "+pathEnlist, a.handle(a.authority))
	mux.Handle("POST "+pathEnlist, a.handle(a.enlist))
	mux.Handle("POST "+pathTurn, a.handle(a.turn))
	mux.HandleFunc("GET "+pathCapture, a.capture)
	mux.Handle("/", nothing(a.Log))
	return mux
}

// streamed says that a handler has written its answer itself.
type streamed struct{}

// handle answers with what fn gives. It is the one place where errors on the
// socket are logged.
func (a *Admin) handle(fn func(http.ResponseWriter, *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := fn(w, r)
		if err != nil {
			p := problemOf(err, true)
			if p.status >= 500 {
				a.Log.Error("answering on the socket", "method", r.Method, "path", r.URL.Path, "error", err)
			}
			answer(w, p.status, p, a.Log)
			return
		}
		if v != (streamed{}) {
			answer(w, http.StatusOK, v, a.Log)
		}
	})
}

func (a *Admin) version(http.ResponseWriter, *http.Request) (any, error) {
	return &ServerVersion{Version: a.Version, Started: a.Started}, nil
}

func (a *Admin) status(http.ResponseWriter, *http.Request) (any, error) {
	snap := a.Cluster.Snapshot()
	now := a.Cluster.Now()
	s := &Status{
		Version: a.Version, Started: a.Started, Now: now, Counts: map[cluster.State]int{},
		Nodes: discreet(snap.Nodes), Collection: snap.Collection, Collecting: snap.Collection.Open(now),
		Unassigned: []cluster.Sighting{},
	}
	assigned := map[cluster.MAC]bool{}
	for _, n := range snap.Nodes {
		s.Counts[n.State]++
		if n.MAC != nil {
			assigned[*n.MAC] = true
		}
	}
	for _, v := range snap.Sightings {
		if !assigned[v.MAC] {
			s.Unassigned = append(s.Unassigned, v)
		}
	}
	if len(snap.Events) > 0 {
		s.LastEvent = snap.Events[len(snap.Events)-1].Seq
	}
	return s, nil
}

// all lists the inventory as it is shown.
func (a *Admin) all() []cluster.Node { return discreet(a.Cluster.Nodes()) }

// discreet takes the nonces of boots out: they let a machine enrol, and what
// is shown here is pasted into tickets.
func discreet(nodes []cluster.Node) []cluster.Node {
	for _, n := range nodes {
		if n.Install != nil {
			n.Install.Boot = ""
		}
	}
	return nodes
}

// nodes lists the nodes of ?node=EXPRESSION…, or all; with ?follow=true again
// whenever one of them has changed.
func (a *Admin) nodes(w http.ResponseWriter, r *http.Request) (any, error) {
	expressions := r.URL.Query()["node"]
	list := func() ([]cluster.Node, error) {
		if len(expressions) == 0 {
			return a.all(), nil
		}
		return cluster.Select(a.all(), expressions...)
	}
	follow, err := flag(r, "follow")
	if err != nil {
		return nil, err
	}
	if !follow {
		nodes, err := list()
		return &nodes, err
	}
	return a.followNodes(w, r, list)
}

func (a *Admin) node(w http.ResponseWriter, r *http.Request) (any, error) {
	return a.show(r.PathValue("name"))
}

func (a *Admin) show(name string) (any, error) {
	n, err := a.one(name)
	return &n, err
}

// one finds the one node that an expression names.
func (a *Admin) one(name string) (cluster.Node, error) {
	nodes, err := cluster.Select(a.all(), name)
	if err != nil {
		return cluster.Node{}, err
	}
	if len(nodes) != 1 {
		return cluster.Node{}, problemf(http.StatusBadRequest, "name one node", "%.80q names %d nodes", name, len(nodes))
	}
	return nodes[0], nil
}

func (a *Admin) addNodes(w http.ResponseWriter, r *http.Request) (any, error) {
	var req AddNodes
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	nodes := req.Nodes
	if req.Series != nil {
		series, err := req.Series.Expand(a.Cluster.Options().Network)
		if err != nil {
			return nil, err
		}
		for _, n := range series {
			n.Role, n.Netmask, n.Gateway = req.Shared.Role, req.Shared.Netmask, req.Shared.Gateway
			n.Domain, n.Image = req.Shared.Domain, req.Shared.Image
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		return nil, problemf(http.StatusBadRequest, "name them, or give a base, a count and the first address", "no nodes to add")
	}
	return a.add(r.Context(), nodes, req.DryRun)
}

// add adds nodes, or says how they would be added.
func (a *Admin) add(ctx context.Context, nodes []cluster.Node, dryRun bool) (any, error) {
	added, err := a.change(ctx, dryRun, nodes, cluster.AddNodes{Nodes: nodes})
	return &added, err
}

// change makes changes, all or none, or on a dry run only tries them, and
// shows the nodes as they are afterwards.
func (a *Admin) change(ctx context.Context, dryRun bool, nodes []cluster.Node, changes ...cluster.Change) ([]cluster.Node, error) {
	var after []cluster.Node
	var err error
	if dryRun {
		after, err = a.Cluster.Try(ctx, changes...)
	} else if err = a.Cluster.Commit(ctx, changes...); err == nil {
		after = a.Cluster.Nodes()
	}
	if err != nil {
		return nil, err
	}
	after = discreet(after)
	names := map[string]bool{}
	for _, n := range nodes {
		names[n.Name] = true
	}
	return slices.DeleteFunc(after, func(n cluster.Node) bool { return !names[n.Name] }), nil
}

func (a *Admin) setNode(w http.ResponseWriter, r *http.Request) (any, error) {
	var req cluster.SetNode
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	req.Name = cmp.Or(req.Name, r.PathValue("name"))
	if req.Name != r.PathValue("name") {
		return nil, problemf(http.StatusBadRequest, "", "a node's name cannot be changed")
	}
	if err := a.Cluster.Commit(r.Context(), req); err != nil {
		return nil, err
	}
	return a.show(req.Name)
}

// selected reads a request that names nodes.
func (a *Admin) selected(expressions []string) ([]cluster.Node, error) {
	if len(expressions) == 0 {
		return nil, problemf(http.StatusBadRequest, "name nodes, as in n[001-016]", "no nodes were named")
	}
	return cluster.Select(a.all(), expressions...)
}

// each carries out one change for each of the nodes named, all or none, and
// shows them as they were before or are after.
func (a *Admin) each(w http.ResponseWriter, r *http.Request, change func(cluster.Node) cluster.Change) (before, after []cluster.Node, err error) {
	var req Named
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, nil, err
	}
	before, err = a.selected(req.Nodes)
	if err != nil {
		return nil, nil, err
	}
	changes := make([]cluster.Change, 0, len(before))
	for _, n := range before {
		changes = append(changes, change(n))
	}
	after, err = a.change(r.Context(), req.DryRun, before, changes...)
	return before, after, err
}

func (a *Admin) removeNodes(w http.ResponseWriter, r *http.Request) (any, error) {
	before, _, err := a.each(w, r, func(n cluster.Node) cluster.Change { return cluster.RemoveNode{Name: n.Name} })
	return &before, err
}

func (a *Admin) export(http.ResponseWriter, *http.Request) (any, error) {
	return new(a.Cluster.Export()), nil
}

func (a *Admin) importNodes(w http.ResponseWriter, r *http.Request) (any, error) {
	var req Import
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	if err := req.Inventory.Check(); err != nil {
		return nil, problemf(http.StatusBadRequest, "give a file that doppel node export wrote", "%s", err)
	}
	return a.add(r.Context(), req.Inventory.Nodes, req.DryRun)
}

func (a *Admin) assign(w http.ResponseWriter, r *http.Request) (any, error) {
	var req AssignMAC
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	if err := a.Cluster.Commit(r.Context(), cluster.Assign(req)); err != nil {
		return nil, err
	}
	return a.show(req.Node)
}

func (a *Admin) unassign(w http.ResponseWriter, r *http.Request) (any, error) {
	_, after, err := a.each(w, r, func(n cluster.Node) cluster.Change { return cluster.Unassign{Node: n.Name} })
	return &after, err
}

func (a *Admin) disarm(w http.ResponseWriter, r *http.Request) (any, error) {
	_, after, err := a.each(w, r, func(n cluster.Node) cluster.Change {
		if n.Update.Pending() {
			return cluster.CancelUpdate{Node: n.Name}
		}
		return cluster.Disarm{Node: n.Name}
	})
	return &after, err
}

func (a *Admin) collection(http.ResponseWriter, *http.Request) (any, error) {
	return new(a.Cluster.Collection()), nil
}

func (a *Admin) openCollection(w http.ResponseWriter, r *http.Request) (any, error) {
	var req Collect
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	if req.For <= 0 {
		return nil, problemf(http.StatusBadRequest, "give a time, as in 10m", "a collection cannot last %s", time.Duration(req.For))
	}
	c := cluster.OpenCollection{Until: a.Cluster.Now().Add(time.Duration(req.For)), Auto: req.Auto}
	if err := a.Cluster.Commit(r.Context(), c); err != nil {
		return nil, err
	}
	return new(a.Cluster.Collection()), nil
}

func (a *Admin) closeCollection(w http.ResponseWriter, r *http.Request) (any, error) {
	if err := a.Cluster.Commit(r.Context(), cluster.CloseCollection{}); err != nil {
		return nil, err
	}
	return new(a.Cluster.Collection()), nil
}

// flag reads a parameter that is true or false.
func flag(r *http.Request, name string) (bool, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return false, nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, problemf(http.StatusBadRequest, "", "%s is true or false, not %.80q", name, s)
	}
	return v, nil
}

// lines joins several complaints to one.
func lines(list []string) string { return strings.Join(list, "; ") }
