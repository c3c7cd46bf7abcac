package web

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"doppel/clone"
	"doppel/cluster"
)

// Enlister makes machines that doppel did not install its nodes.
type Enlister interface {
	// EnlistNode keeps the machine in the inventory, and gives what it needs to
	// be a node. A *cluster.RefusedError says why not.
	EnlistNode(ctx context.Context, req EnlistRequest) (EnlistAnswer, error)
	// Authority is the cluster's certificate authority, PEM.
	Authority() []byte
}

// EnlistRequest asks for a machine to become a node.
type EnlistRequest struct {
	Name   string       `json:"name"`
	Role   cluster.Role `json:"role,omitempty"` // empty: head
	Addr   netip.Addr   `json:"addr,omitzero"`  // which of its addresses; none: the one in the network that is served
	Domain string       `json:"domain,omitempty"`
	Runs   string       `json:"runs,omitempty"` // NAME@VERSION that was captured from it last
	Digest string       `json:"digest,omitempty"`
	Found  clone.Found  `json:"found"`
	DryRun bool         `json:"dry_run,omitempty"` // only say whether it could be
}

// EnlistAnswer is what a machine needs to be a node.
type EnlistAnswer struct {
	Node        cluster.Node `json:"node"`
	Plan        *clone.Plan  `json:"plan"`
	Certificate []byte       `json:"certificate,omitempty"` // PEM
	CA          []byte       `json:"ca"`                    // PEM
}

// Authority is the cluster's certificate authority, PEM.
func (m *Machines) Authority() []byte { return m.CA.PEM() }

// EnlistNode keeps a machine in the inventory that doppel did not install, and
// gives its plan and certificate.
func (m *Machines) EnlistNode(ctx context.Context, req EnlistRequest) (EnlistAnswer, error) {
	mac, addr, err := chooseNIC(req.Found.NICs, req.Addr, m.Cluster.Options().Network)
	if err != nil {
		return EnlistAnswer{}, err
	}
	c := cluster.EnlistNode{
		Name: req.Name, Role: req.Role, MAC: mac, Addr: addr.Addr(), Netmask: addr.Bits(), Domain: req.Domain, Runs: req.Runs, Digest: req.Digest, Key: "not known yet",
	}
	after, err := m.Cluster.Try(ctx, c)
	if err != nil {
		return EnlistAnswer{}, err
	}
	a := EnlistAnswer{CA: m.CA.PEM()}
	for _, n := range after {
		if n.Name == req.Name {
			a.Node = n
		}
	}
	t := m.machineOf(a.Node)
	t.Install, t.Image = newInstall(), a.Node.Runs
	if a.Plan, err = clone.FoundPlan(req.Found, t); err != nil {
		if no, ok := errors.AsType[*clone.RefusedError](err); ok {
			err = &cluster.RefusedError{What: no.What, Hint: no.Hint}
		}
		return a, err
	}
	der, err := m.CA.IssueNode(req.Found.CSR, req.Name)
	if err != nil {
		return a, err
	}
	crt, err := x509.ParseCertificate(der)
	if err != nil {
		return a, fmt.Errorf("reading a certificate just made: %w", err)
	}
	if req.DryRun {
		return a, nil
	}
	c.Key = keyDigest(crt)
	if err := m.Cluster.Commit(ctx, c); err != nil {
		return a, err
	}
	a.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	a.Node, _ = m.Cluster.Node(req.Name)
	return a, nil
}

// chooseNIC finds the NIC, and its address, by which a machine is a node.
func chooseNIC(nics []clone.NIC, want netip.Addr, network netip.Prefix) (cluster.MAC, netip.Prefix, error) {
	type choice struct {
		nic  clone.NIC
		addr netip.Prefix
	}
	var found []choice
	var has []string
	for _, n := range nics {
		for _, a := range n.Addrs {
			has = append(has, n.Name+" "+a.String())
			if want.IsValid() && a.Addr() == want || !want.IsValid() && (!network.IsValid() || network.Contains(a.Addr())) {
				found = append(found, choice{n, a})
			}
		}
	}
	what := "address in " + network.String()
	if want.IsValid() {
		what = "address " + want.String()
	}
	switch {
	case len(found) == 0:
		return cluster.MAC{}, netip.Prefix{}, &cluster.RefusedError{What: fmt.Sprintf("the machine has no %s; it has %s", what, strings.Join(has, ", ")), Hint: "give it one: nodes and doppel reach each other in the network that doppel serves"}
	case len(found) > 1:
		return cluster.MAC{}, netip.Prefix{}, &cluster.RefusedError{What: fmt.Sprintf("the machine has several addresses that it could be a node by: %s", strings.Join(has, ", ")), Hint: "name one with --ip"}
	}
	mac, err := cluster.ParseMAC(found[0].nic.MAC)
	if err != nil {
		return mac, netip.Prefix{}, problemf(http.StatusBadRequest, "", "%s: %s", found[0].nic.Name, err)
	}
	return mac, found[0].addr, nil
}

func (a *Admin) enlist(w http.ResponseWriter, r *http.Request) (any, error) {
	var req EnlistRequest
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	v, err := a.Enlists.EnlistNode(r.Context(), req)
	return &v, err
}

func (a *Admin) authority(http.ResponseWriter, *http.Request) (any, error) {
	return &EnlistAnswer{CA: a.Enlists.Authority()}, nil
}

// Enlist makes a machine that doppel did not install a node.
func (c *Client) Enlist(ctx context.Context, req EnlistRequest) (EnlistAnswer, error) {
	return call[EnlistAnswer](ctx, c, http.MethodPost, pathEnlist, nil, req)
}

// Authority is the certificate authority of the daemon's cluster, PEM.
func (c *Client) Authority(ctx context.Context) ([]byte, error) {
	a, err := call[EnlistAnswer](ctx, c, http.MethodGet, pathEnlist, nil, nil)
	return a.CA, err
}
