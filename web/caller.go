package web

import (
	"crypto/x509"
	"errors"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

// stages tells of each stage whether the disk is written in it. The last words
// of an install are not among them.
var stages = map[clone.Stage]bool{
	clone.StageEnrol:      false,
	clone.StagePlan:       false,
	clone.StageTools:      false,
	clone.StagePartition:  true,
	clone.StageFormat:     true,
	clone.StageApply:      true,
	clone.StageIdentity:   true,
	clone.StageBootloader: true,
	clone.StageAgent:      true,
}

// caller reads whom the caller's certificate was issued to, which must be a
// boot's or a node's as wanted.
func (m *Machines) caller(r *http.Request, boot bool) (Identity, *x509.Certificate, error) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return Identity{}, nil, problemf(http.StatusUnauthorized, "", "this needs a certificate of the cluster")
	}
	crt := r.TLS.VerifiedChains[0][0]
	id, err := identify(crt)
	if err != nil {
		return Identity{}, nil, problemf(http.StatusForbidden, "", "%s", err)
	}
	switch {
	case boot && !id.Boot:
		return Identity{}, nil, problemf(http.StatusForbidden, "", "this needs the certificate of a boot, not %s's own", id.Node)
	case !boot && id.Boot:
		return Identity{}, nil, problemf(http.StatusForbidden, "", "this needs %s's own certificate, not that of a boot", id.Node)
	}
	return id, crt, nil
}

// booting finds the node of a boot's certificate, which is worth nothing once
// the install it was for is over or taken back.
func (m *Machines) booting(r *http.Request) (cluster.Node, error) {
	id, crt, err := m.caller(r, true)
	if err != nil {
		return cluster.Node{}, err
	}
	n, ok := m.Cluster.Node(id.Node)
	switch {
	case !ok:
		return cluster.Node{}, problemf(http.StatusForbidden, "", "there is no node %s any more", id.Node)
	case n.State != cluster.Armed && n.State != cluster.Installing:
		return cluster.Node{}, problemf(http.StatusForbidden, "doppel deploy "+n.Name, "%s is %s: no install is permitted", n.Name, n.State)
	case n.Install == nil || n.Install.ID != id.Install || n.MAC == nil:
		return cluster.Node{}, problemf(http.StatusForbidden, "boot the machine again", "%s is armed for another install", n.Name)
	case !n.Install.Finished.IsZero():
		return cluster.Node{}, problemf(http.StatusForbidden, "", "the install of %s is finished", n.Name)
	}
	return n, newest(n, crt)
}

// newest refuses the certificate of a boot that is not the one that enrolled
// last for the node's install: it is an earlier boot's, or that of a second
// machine with the same MAC.
func newest(n cluster.Node, crt *x509.Certificate) error {
	if n.Install.BootKey != keyDigest(crt) {
		return problemf(http.StatusForbidden, "boot the machine again", "another boot of %s has enrolled since", n.Name)
	}
	return nil
}

// forbid makes of a rule that was broken by a machine a 403.
func forbid(err error) error {
	if r, ok := errors.AsType[*cluster.RefusedError](err); ok {
		return problemf(http.StatusForbidden, r.Hint, "%s", r.What)
	}
	return err
}

// callerAddr is the address that a request came from.
func callerAddr(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // a Unix socket; nobody's address
	}
	return ap.Addr().Unmap().WithZone("")
}

// refusals remembers what was refused to whom a moment ago, so that a caller
// who tries without end costs neither events nor log.
type refusals struct {
	mu   sync.Mutex
	last map[refusal]time.Time
}

type refusal struct {
	addr netip.Addr
	what string
}

const (
	refusalEvery = 10 * time.Second
	maxRefusals  = 1024
)

// first tells whether the same was not refused to the same caller lately.
func (l *refusals) first(addr netip.Addr, what string, at time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := refusal{addr, what}
	if last, ok := l.last[key]; ok && at.Sub(last) < refusalEvery && at.Sub(last) >= 0 {
		return false
	}
	if l.last == nil || len(l.last) >= maxRefusals {
		l.last = map[refusal]time.Time{}
	}
	l.last[key] = at
	return true
}
