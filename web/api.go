package web

import (
	"time"

	"doppel/cluster"
)

// AddNodes asks for nodes: those listed, or those of a series with what all of
// them share.
type AddNodes struct {
	Nodes  []cluster.Node  `json:"nodes,omitempty"`
	Series *cluster.Series `json:"series,omitempty"`
	Shared cluster.Node    `json:"shared,omitzero"` // role, netmask, gateway, domain, image for the series
	DryRun bool            `json:"dry_run,omitempty"`
}

// Import asks for the nodes of an exported inventory.
type Import struct {
	Inventory cluster.Inventory `json:"inventory"`
	DryRun    bool              `json:"dry_run,omitempty"`
}

// Named names nodes by expressions; see cluster.Select.
type Named struct {
	Nodes  []string `json:"nodes"`
	DryRun bool     `json:"dry_run,omitempty"`
}

// AssignMAC ties a machine to a node.
type AssignMAC struct {
	MAC  cluster.MAC `json:"mac"`
	Node string      `json:"node"`
}

// Collect opens the collection window.
type Collect struct {
	For  Duration `json:"for"`
	Auto bool     `json:"auto,omitempty"`
}

// Duration is a time.Duration that travels as people write it: 10m.
type Duration time.Duration

func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}

// Seen is a sighting, and the node of the machine, if it is one's.
type Seen struct {
	cluster.Sighting
	Node string `json:"node,omitempty"`
}

// Deploy asks to arm nodes.
type Deploy struct {
	Nodes  []string `json:"nodes"`
	Image  string   `json:"image,omitempty"` // empty: each node's own
	Disk   string   `json:"disk,omitempty"`
	After  string   `json:"after,omitempty"` // default reboot
	DryRun bool     `json:"dry_run,omitempty"`

	InPlace bool `json:"in_place,omitempty"` // nodes that run are made equal to the image, and nothing is erased
	Full    bool `json:"full,omitempty"`     // in place: compare by content, instead of trusting size and time
	Force   bool `json:"force,omitempty"`    // in place: though the image is of another distribution
	// In place: these paths alone, and what is below those that do not end with
	// "/.", as in the version that the node runs.
	Paths []string `json:"paths,omitempty"`
}

// Deployment is what a deploy does to one node.
type Deployment struct {
	Node     string       `json:"node"`
	MAC      cluster.MAC  `json:"mac"`
	Arch     string       `json:"arch,omitempty"` // as last seen
	UUID     string       `json:"uuid,omitempty"` // as last seen
	Addr     string       `json:"addr"`
	Role     cluster.Role `json:"role"`
	InPlace  bool         `json:"in_place,omitempty"`
	Paths    []string     `json:"paths,omitempty"`   // these alone
	Install  string       `json:"install,omitempty"` // or update; empty on a dry run
	Image    string       `json:"image"`             // NAME@VERSION
	Digest   string       `json:"digest"`
	Disk     string       `json:"disk,omitempty"` // as the operator named it
	After    string       `json:"after,omitempty"`
	Erases   string       `json:"erases"`         // what will be lost, in words
	Runs     string       `json:"runs,omitempty"` // what is on its disk now, as far as is known
	Warnings []string     `json:"warnings,omitempty"`
}

// Status is the cluster at a glance.
type Status struct {
	Version    string                `json:"version"`
	Started    time.Time             `json:"started"`
	Now        time.Time             `json:"now"`
	Counts     map[cluster.State]int `json:"counts"`
	Nodes      []cluster.Node        `json:"nodes"`
	Collection cluster.Collection    `json:"collection"`
	Collecting bool                  `json:"collecting"`
	Unassigned []cluster.Sighting    `json:"unassigned"` // machines seen that are no node's
	LastEvent  uint64                `json:"last_event"`
}

// ServerVersion says what answers.
type ServerVersion struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
}

// Reference to the addresses of the API, so that both ends agree.
const (
	pathVersion    = "/v1/version"
	pathStatus     = "/v1/status"
	pathNodes      = "/v1/nodes"
	pathRemove     = "/v1/remove"
	pathExport     = "/v1/export"
	pathImport     = "/v1/import"
	pathAssign     = "/v1/assign"
	pathUnassign   = "/v1/unassign"
	pathSightings  = "/v1/sightings"
	pathCollection = "/v1/collection"
	pathDeploy     = "/v1/deploy"
	pathDisarm     = "/v1/disarm"
	pathEvents     = "/v1/events"
	pathSync       = "/v1/sync"
	pathDrift      = "/v1/drift"
	pathCapture    = "/v1/capture"
	pathEnlist     = "/v1/enlist"
	pathTurn       = "/v1/turn"
)
