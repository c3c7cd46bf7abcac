package clone

import (
	"encoding/json"

	"doppel/imaging"
	"doppel/imaging/store"
)

// The words between the agent and the server. All of them travel by TLS; see
// ARCHITECTURE.md, "The wire", for the addresses.

// Enrol asks for a certificate for this boot. It is answered once for each
// boot, to the first caller from an armed node's address.
type Enrol struct {
	Boot string `json:"boot"` // nonce from the kernel's command line
	CSR  []byte `json:"csr"`  // PKCS #10, DER; the subject is ignored
}

// Enrolled answers Enrol and NodeCertificate.
type Enrolled struct {
	Node        string `json:"node"`
	Certificate []byte `json:"certificate"` // DER
}

// Orders answer a machine's Hardware: what to become, and the keys and names
// it needs to read the image. Exactly one of Plan and Refused is set.
type Orders struct {
	Plan    *Plan  `json:"plan,omitempty"`
	Refused string `json:"refused,omitempty"`
	Access
}

// Access is what a machine needs to read one version of an image.
type Access struct {
	Manifest store.ID   `json:"manifest"` // the manifest's blob
	Digest   string     `json:"digest"`   // the version's identity, which the manifest must have
	Packs    []store.ID `json:"packs"`    // that hold what this node may read, in reading order
	Store    string     `json:"store"`    // base URL of the blobs, plain HTTP
	Cluster  []byte     `json:"cluster_key"`
	Head     []byte     `json:"head_key,omitempty"` // role head only
}

// UpdateOrders say what a node that runs is to become in place.
type UpdateOrders struct {
	ID    string   `json:"id"`
	Image string   `json:"image"`           // NAME@VERSION
	Keep  []string `json:"keep,omitempty"`  // paths that the node keeps as they are: patterns as in Rule
	Paths []string `json:"paths,omitempty"` // from the root: these and what is below them, unless they end with imaging.Alone; empty: everything
	Full  bool     `json:"full,omitempty"`  // compare by content, instead of trusting size and time
	Force bool     `json:"force,omitempty"` // though the image is of another distribution
	Pre   string   `json:"pre,omitempty"`   // shell command to run first; when it fails, nothing is touched
	Post  string   `json:"post,omitempty"`  // shell command to run when all is done
	Access

	Pair   *PairWord     `json:"pair,omitempty"`   // of which the node is a head; nil: of none
	Parted *PartedOrders `json:"parted,omitempty"` // what was changed here since then is kept; nil: nothing is
}

// Idle asks for something to do, as a node that runs does without end.
type Idle struct {
	BootID string `json:"boot_id"` // /proc/sys/kernel/random/boot_id

	Agent        store.ID      `json:"agent,omitzero"`          // digest of the agent that asks
	AgentRefused *AgentRefusal `json:"agent_refused,omitempty"` // the agent it was given last and does not run

	Pair *PairWord `json:"pair,omitempty"` // what the node was last told of its pair; nil: nothing
}

// Task is something to do.
type Task struct {
	Update *UpdateOrders `json:"update,omitempty"`
	Drift  *DriftOrders  `json:"drift,omitempty"`
	Agent  *AgentOrders  `json:"agent,omitempty"`

	Capture *CaptureOrders `json:"capture,omitempty"`
	Pair    *PairOrders    `json:"pair,omitempty"`
}

// AgentOrders tell a node to run another agent, which is at /v1/agent.
type AgentOrders struct {
	Digest store.ID `json:"digest"`
	Size   int64    `json:"size"` // bytes
}

// AgentRefusal says why a node does not run an agent.
type AgentRefusal struct {
	Digest store.ID `json:"digest"`
	Why    string   `json:"why"`
}

// CaptureOrders ask a node for the far end of a capture: for a connection to
// /v1/stream?id=ID that is upgraded to imaging/wire's protocol.
type CaptureOrders struct {
	ID string `json:"id"`
	// Stays says that captures follow one another on that connection: the node
	// asks for other work meanwhile.
	Stays bool `json:"stays,omitempty"`
}

// DriftOrders ask a node in what it differs from a version.
type DriftOrders struct {
	ID    string   `json:"id"`
	Image string   `json:"image"`          // NAME@VERSION
	Keep  []string `json:"keep,omitempty"` // paths that the node keeps as they are: patterns as in Rule
	Full  bool     `json:"full,omitempty"` // read every file, instead of trusting size and time
	Access
}

// DriftWord is the node's answer.
type DriftWord struct {
	ID     string          `json:"id"`
	Failed string          `json:"failed,omitempty"` // why there is no report
	Report json.RawMessage `json:"report,omitempty"` // package resync's
}

// UpdateWord is a node's word on its update: Install is the update's ID, and
// StageFinish and StageFailed are the last.
type UpdateWord struct {
	Report
	Result *UpdateReport `json:"result,omitempty"` // with StageFinish
}

// UpdateReport says what an update did.
type UpdateReport struct {
	Image   string               `json:"image"`
	Apply   *imaging.ApplyReport `json:"apply,omitempty"`
	Derived []string             `json:"derived,omitempty"` // identity files written anew
	Removed []string             `json:"removed,omitempty"` // paths named that the image lacks
	Boot    bool                 `json:"boot,omitempty"`    // the boot menu was made anew
	Seconds float64              `json:"seconds"`

	Kept *Kept `json:"kept,omitempty"` // on a head that parted from its other
}

// Stage is a step of carrying out a plan, or of an update in place.
type Stage string

const (
	StageEnrol      Stage = "enrol"
	StagePlan       Stage = "plan"
	StageTools      Stage = "tools"
	StagePartition  Stage = "partition"
	StageFormat     Stage = "format"
	StageApply      Stage = "apply"
	StageIdentity   Stage = "identity"
	StageBootloader Stage = "bootloader"
	StageAgent      Stage = "agent"
	StageFinish     Stage = "finish" // the last words: all is durable; disarms
	StageCheck      Stage = "check"  // of an update: whether the image is for this node
	StagePre        Stage = "pre"    // of an update: the operator's command before it
	StageSettle     Stage = "settle" // of an update: systemd reads its units again, and all is done
	StagePost       Stage = "post"   // of an update: the operator's command after it
	StageFailed     Stage = "failed"
)

// Report is a machine's word on a stage.
type Report struct {
	Install string `json:"install"` // the plan's id
	Stage   Stage  `json:"stage"`
	Detail  string `json:"detail,omitempty"` // on StageFailed: the reason
	Done    int64  `json:"done,omitempty"`   // bytes
	Total   int64  `json:"total,omitempty"`  // bytes
}

// Up is an installed node's word that it runs from its own disk.
type Up struct {
	Hostname string `json:"hostname"`
	BootID   string `json:"boot_id"`   // /proc/sys/kernel/random/boot_id
	DiskGUID string `json:"disk_guid"` // of the disk that holds its root
	Kernel   string `json:"kernel"`
}
