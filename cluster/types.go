package cluster

import (
	"fmt"
	"net/netip"
	"time"
)

// MAC is an Ethernet address, comparable; it is written in lower case with
// colons.
type MAC [6]byte

// Role is what a node is to the cluster.
type Role string

const (
	Compute Role = "compute"
	Head    Role = "head"
)

// State is where a node stands between being seen and running its image.
type State string

const (
	Discovered State = "Discovered" // in the inventory, no machine assigned yet
	Assigned   State = "Assigned"   // has a machine; boots from its own disk
	Armed      State = "Armed"      // exactly one destructive install is permitted
	Installing State = "Installing" // an install has fetched its plan
	Installed  State = "Installed"  // the last install succeeded
	Failed     State = "Failed"     // the last install failed; waits until deployed again
)

// Node is one machine of the inventory.
type Node struct {
	Name    string     `json:"name"`
	Role    Role       `json:"role"`
	MAC     *MAC       `json:"mac,omitempty"` // of the NIC it boots from; nil: unassigned
	Addr    netip.Addr `json:"addr"`
	Netmask int        `json:"netmask"` // prefix length
	Gateway netip.Addr `json:"gateway,omitzero"`
	Domain  string     `json:"domain,omitempty"`
	Image   string     `json:"image,omitempty"` // the reference to deploy by default
	State   State      `json:"state"`
	Reason  string     `json:"reason,omitempty"` // why it is Failed
	Install *Install   `json:"install,omitempty"`
	Update  *Update    `json:"update,omitempty"`
	Parted  *Parted    `json:"parted,omitempty"` // since when it may have changes of its own; nil: it has none that stay
	Runs    string     `json:"runs,omitempty"`   // NAME@VERSION on its disk
	Held    bool       `json:"held,omitempty"`   // does not follow its image
	LastUp  time.Time  `json:"last_up,omitzero"`
	Added   time.Time  `json:"added"`
	// Enlisted is when the machine became a node without being installed by
	// doppel; zero: doppel installed it, or nobody did.
	Enlisted time.Time `json:"enlisted,omitzero"`
	// UpFrom is the disk GUID the node last reported itself up from.
	UpFrom string `json:"up_from,omitempty"`
	BootID string `json:"boot_id,omitempty"` // of the boot it last reported itself up in
	Kernel string `json:"kernel,omitempty"`  // it last reported itself up with
	// Key is the SHA-256, in hexadecimal, of the public key that the node's
	// certificate was last issued for; older certificates are worth nothing.
	Key string `json:"key,omitempty"`
}

// Install is the one install a node is armed for, or the last one it had.
type Install struct {
	ID       string    `json:"id"`             // a UUID, which becomes the GPT disk GUID
	Image    string    `json:"image"`          // NAME@VERSION
	Digest   string    `json:"digest"`         // the version's identity
	Disk     string    `json:"disk,omitempty"` // as the operator named it; empty: the stated rule
	After    string    `json:"after"`          // reboot, poweroff, shell
	Armed    time.Time `json:"armed"`
	Boot     string    `json:"boot,omitempty"`     // nonce of the boot whose first caller may enrol
	Enrolled bool      `json:"enrolled,omitempty"` // that caller has come
	// BootKey is the SHA-256, in hexadecimal, of the public key of the boot
	// that enrolled last; certificates of earlier boots are worth nothing.
	BootKey  string    `json:"boot_key,omitempty"`
	Stage    string    `json:"stage,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	Done     int64     `json:"done,omitempty"`  // bytes
	Total    int64     `json:"total,omitempty"` // bytes
	Updated  time.Time `json:"updated,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// Sighting is a machine seen asking to boot.
type Sighting struct {
	MAC         MAC       `json:"mac"`
	Arch        string    `json:"arch"` // as pxe names it: bios, uefi-x86_64, uefi-arm64, …
	UUID        string    `json:"uuid,omitempty"`
	VendorClass string    `json:"vendor_class,omitempty"`
	Interface   string    `json:"interface"`
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
	Count       int64     `json:"count"`
}

// Lease is an address given by DHCP.
type Lease struct {
	Addr     netip.Addr `json:"addr"`
	MAC      MAC        `json:"mac"`
	ClientID []byte     `json:"client_id,omitempty"`
	Hostname string     `json:"hostname,omitempty"`
	Expires  time.Time  `json:"expires"`
	Declined bool       `json:"declined,omitempty"`
}

// Event is one thing that happened, for people.
type Event struct {
	Seq  uint64    `json:"seq"`
	Time time.Time `json:"time"`
	Kind string    `json:"kind"` // sighting, assign, arm, stage, installed, failed, up, refused, …
	Node string    `json:"node,omitempty"`
	MAC  *MAC      `json:"mac,omitempty"`
	Text string    `json:"text"`
}

// Collection is the window in which unknown machines get an address and wait.
type Collection struct {
	Until time.Time `json:"until,omitzero"` // zero: closed
	Auto  bool      `json:"auto"`           // assign machines to free nodes in order
}

// Open tells whether the window is open at the time.
func (c Collection) Open(at time.Time) bool { return at.Before(c.Until) }

// RefusedError says that a change would break a rule; nothing was changed.
type RefusedError struct {
	What string // what is wrong
	Hint string // what to do about it
	// Unknown tells that the refusal is only that something named is not there.
	Unknown bool
}

func (e *RefusedError) Error() string {
	if e.Hint == "" {
		return e.What
	}
	return fmt.Sprintf("%s (%s)", e.What, e.Hint)
}
