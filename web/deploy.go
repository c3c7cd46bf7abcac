package web

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"doppel/cluster"
)

// deploy arms nodes, or orders their update in place, all or none, or says what
// that would do.
func (a *Admin) deploy(w http.ResponseWriter, r *http.Request) (any, error) {
	var req Deploy
	if err := readBody(w, r, maxAdmin, &req); err != nil {
		return nil, err
	}
	if err := req.errInPlace(); err != nil {
		return nil, problemf(http.StatusBadRequest, "", "%s", err)
	}
	plan := a.planUpdate
	if !req.InPlace {
		plan = a.planInstall
		req.After = cmp.Or(req.After, "reboot")
	}
	nodes, err := a.selected(req.Nodes)
	if err != nil {
		return nil, err
	}
	out := make([]Deployment, 0, len(nodes))
	var changes []cluster.Change
	var refused []*cluster.RefusedError
	for _, n := range nodes {
		d, change, err := plan(r.Context(), n, req)
		if why, ok := errors.AsType[*cluster.RefusedError](err); ok {
			refused = append(refused, why)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("checking whether %s can be deployed: %w", n.Name, err)
		}
		out = append(out, d)
		changes = append(changes, change)
	}
	if err := together(refused); err != nil {
		return nil, err
	}
	if _, err := a.change(r.Context(), req.DryRun, nodes, changes...); err != nil {
		return nil, err
	}
	if req.DryRun {
		for i := range out {
			out[i].Install = ""
		}
	}
	return &out, nil
}

// together makes one refusal of all of them.
func together(refused []*cluster.RefusedError) error {
	if len(refused) == 0 {
		return nil
	}
	var what, hints []string
	seen := map[string]bool{}
	for _, r := range refused {
		what = append(what, r.What)
		if r.Hint != "" && !seen[r.Hint] {
			seen[r.Hint] = true
			hints = append(hints, r.Hint)
		}
	}
	return &cluster.RefusedError{What: lines(what), Hint: lines(hints)}
}

// planInstall says what a deploy would do to one node.
func (a *Admin) planInstall(ctx context.Context, n cluster.Node, req Deploy) (Deployment, cluster.Change, error) {
	if n.MAC == nil {
		return Deployment{}, nil, &cluster.RefusedError{What: n.Name + " has no machine", Hint: "doppel assign MAC " + n.Name + " first"}
	}
	ref := cmp.Or(req.Image, n.Image)
	if ref == "" {
		return Deployment{}, nil, &cluster.RefusedError{
			What: n.Name + " has no image of its own, and none was given",
			Hint: "give --image, see doppel image ls",
		}
	}
	version, digest, warnings, err := a.CheckDeploy(ctx, n, ref)
	if err != nil {
		return Deployment{}, nil, err
	}
	d := Deployment{
		Node: n.Name, MAC: *n.MAC, Addr: n.Addr.String(), Role: n.Role,
		Install: newInstall(), Image: version, Digest: digest,
		Disk: req.Disk, After: req.After, Runs: n.Runs, Warnings: warnings,
	}
	if v, ok := a.Cluster.Sighting(*n.MAC); ok {
		d.Arch, d.UUID = v.Arch, v.UUID
	}
	d.Erases = "everything on the only disk of the machine " + n.MAC.String() + " (with more than one the install refuses and lists them)"
	if d.Disk != "" {
		d.Erases = fmt.Sprintf("everything on the disk %s of the machine %s", d.Disk, n.MAC)
	}
	return d, cluster.Arm{Node: n.Name, Install: d.Install, Image: d.Image, Digest: d.Digest, Disk: d.Disk, After: d.After, Hold: holds(ref, version)}, nil
}

// newInstall makes an install's id: a random UUID (RFC 9562, version 4) in
// upper case, as GPT tools write a disk's GUID.
func newInstall() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process first
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return strings.ToUpper(fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:]))
}
