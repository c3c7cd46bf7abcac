package cluster

import (
	"net/netip"
	"time"
)

// Change is one thing that happens to a cluster. The types below, and those in
// update.go, sync.go, pair.go and enlist.go, are all there are.
type Change interface {
	// Kind is the name of the change's type in the log.
	Kind() string
	// prepare checks the change against the rules and the state, and gives it
	// back with everything that the rules or the state decide filled in. It
	// gives nil when what is asked for is so already.
	prepare(s *state, at time.Time) (Change, error)
	// apply alters the state. It reads nothing but the state, the change and
	// the time, and refuses only a change that cannot have come from prepare.
	apply(s *state, at time.Time) error
}

// AddNodes adds nodes to the inventory. Of each node only what describes it is
// taken (name, role, address, domain, image), and what an import brings: its
// MAC, what it runs, and its certificate's key.
type AddNodes struct {
	Nodes []Node `json:"nodes"`
}

// SetNode alters what describes a node; nil leaves as it is.
type SetNode struct {
	Name    string      `json:"name"`
	Role    *Role       `json:"role,omitempty"`
	Addr    *netip.Addr `json:"addr,omitempty"`
	Netmask *int        `json:"netmask,omitempty"`
	Gateway *netip.Addr `json:"gateway,omitempty"` // the zero Addr: none
	Domain  *string     `json:"domain,omitempty"`
	Image   *string     `json:"image,omitempty"`
}

// RemoveNode takes a node out of the inventory.
type RemoveNode struct {
	Name string `json:"name"`
}

// Sight says how a machine has been seen up to now. Use Cluster.Sight, which
// counts.
type Sight struct {
	Sighting
}

// ForgetSighting forgets a machine seen, as if it never had been.
type ForgetSighting struct {
	MAC MAC `json:"mac"`
}

// Assign ties a machine to a node.
type Assign struct {
	MAC  MAC    `json:"mac"`
	Node string `json:"node"`
}

// AutoAssign ties a machine to the next node without one, while a collection
// that assigns is open; the log has the Assign that comes of it.
type AutoAssign struct {
	MAC MAC `json:"mac"`
}

// Unassign takes the machine from a node.
type Unassign struct {
	Node string `json:"node"`
}

// OpenCollection opens the window, or moves its end.
type OpenCollection struct {
	Until time.Time `json:"until"`
	Auto  bool      `json:"auto,omitempty"`
}

// CloseCollection closes the window.
type CloseCollection struct{}

// Arm permits one destructive install of a node.
type Arm struct {
	Node    string `json:"node"`
	Install string `json:"install"` // a new UUID in upper case
	Image   string `json:"image"`   // NAME@VERSION
	Digest  string `json:"digest"`
	Disk    string `json:"disk,omitempty"`
	After   string `json:"after"`          // reboot, poweroff or shell
	Hold    bool   `json:"hold,omitempty"` // on that version, until HoldNode says otherwise
}

// Disarm takes back an arming, stops waiting for an install, or ends the wait
// of a failed node.
type Disarm struct {
	Node string `json:"node"`
}

// BeginBoot says that an armed or installing node was given the installer;
// the first caller that knows Boot may enrol.
type BeginBoot struct {
	Node string `json:"node"`
	Boot string `json:"boot"` // a new nonce
}

// Enrol says that the first caller of a boot has come.
type Enrol struct {
	Node string `json:"node"`
	Boot string `json:"boot"`
	Key  string `json:"key,omitempty"` // SHA-256 of its public key, in hexadecimal
}

// BeginInstall says that a node was given its plan.
type BeginInstall struct {
	Node    string `json:"node"`
	Install string `json:"install"`
	Detail  string `json:"detail,omitempty"` // the disk and why, for people
}

// ReportStage is an installing node's word on its stage. Use Cluster.Progress
// for what only counts on.
type ReportStage struct {
	Node    string `json:"node"`
	Install string `json:"install"`
	Stage   string `json:"stage"`
	Detail  string `json:"detail,omitempty"`
	Done    int64  `json:"done,omitempty"`
	Total   int64  `json:"total,omitempty"`
	// Writes tells that the disk is being written: what was on it is gone.
	Writes bool `json:"writes,omitempty"`
}

// Certify says that a node was given its own certificate.
type Certify struct {
	Node    string `json:"node"`
	Install string `json:"install"`
	Key     string `json:"key"` // SHA-256 of the public key, in hexadecimal
}

// Finish says that an install is done and durable. It disarms.
type Finish struct {
	Node    string `json:"node"`
	Install string `json:"install"`
}

// Fail says that an install failed and why.
type Fail struct {
	Node    string `json:"node"`
	Install string `json:"install"`
	Reason  string `json:"reason"`
}

// Up is a node's word that it runs from its own disk.
type Up struct {
	Node     string `json:"node"`
	DiskGUID string `json:"disk_guid"`
	BootID   string `json:"boot_id"`
	Kernel   string `json:"kernel,omitempty"`
}

// PutLease keeps a lease in the place of the one with its address.
type PutLease struct {
	Lease
}

// DeleteLease forgets the lease of an address.
type DeleteLease struct {
	Addr netip.Addr `json:"addr"`
}

// Note is an event that changes nothing else.
type Note struct {
	What string `json:"kind"` // the event's kind: refused, warning, …
	Node string `json:"node,omitempty"`
	MAC  *MAC   `json:"mac,omitempty"`
	Text string `json:"text"`
}

func (AddNodes) Kind() string        { return "add-nodes" }
func (SetNode) Kind() string         { return "set-node" }
func (RemoveNode) Kind() string      { return "remove-node" }
func (Sight) Kind() string           { return "sight" }
func (ForgetSighting) Kind() string  { return "forget-sighting" }
func (Assign) Kind() string          { return "assign" }
func (AutoAssign) Kind() string      { return "auto-assign" }
func (Unassign) Kind() string        { return "unassign" }
func (OpenCollection) Kind() string  { return "open-collection" }
func (CloseCollection) Kind() string { return "close-collection" }
func (Arm) Kind() string             { return "arm" }
func (Disarm) Kind() string          { return "disarm" }
func (BeginBoot) Kind() string       { return "begin-boot" }
func (Enrol) Kind() string           { return "enrol" }
func (BeginInstall) Kind() string    { return "begin-install" }
func (ReportStage) Kind() string     { return "report-stage" }
func (Certify) Kind() string         { return "certify" }
func (Finish) Kind() string          { return "finish" }
func (Fail) Kind() string            { return "fail" }
func (Up) Kind() string              { return "up" }
func (PutLease) Kind() string        { return "put-lease" }
func (DeleteLease) Kind() string     { return "delete-lease" }
func (Note) Kind() string            { return "note" }
