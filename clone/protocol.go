package clone

import "doppel/imaging/store"

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
	Plan     *Plan      `json:"plan,omitempty"`
	Refused  string     `json:"refused,omitempty"`
	Manifest store.ID   `json:"manifest"` // the manifest's blob
	Digest   string     `json:"digest"`   // the version's identity, which the manifest must have
	Packs    []store.ID `json:"packs"`    // that hold what this node may read, in reading order
	Store    string     `json:"store"`    // base URL of the blobs, plain HTTP
	Cluster  []byte     `json:"cluster_key"`
	Head     []byte     `json:"head_key,omitempty"` // role head only
}

// Stage is a step of carrying out a plan.
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
