package clone

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"

	"doppel/imaging"
)

// The words between doppel node enlist and the agent on a machine that doppel
// did not install. They travel by SSH: the agent says what it found, is told
// what to do, and says that it is done.

// Found is what a machine that was not installed says of itself.
type Found struct {
	Hostname string `json:"hostname"`
	Hardware
	NICs   []NIC           `json:"nics"`
	System string          `json:"system"`           // PRETTY_NAME of os-release(5)
	Layout *imaging.Layout `json:"layout,omitempty"` // of the disk that has the root; nil: Note says why
	Note   string          `json:"note,omitempty"`
	Trees  []FoundTree     `json:"trees"` // what is mounted of disks
	Root   string          `json:"root"`  // root= of the kernel's command line
	CSR    []byte          `json:"csr"`   // for a key that was made there, and stays there

	Node *NodeConfig `json:"node,omitempty"` // what it is already; nil: nobody's node
	CA   []byte      `json:"ca,omitempty"`   // whose node, PEM

	Systemd bool   `json:"systemd"`         // runs there
	Agent   string `json:"agent,omitempty"` // SHA-256, in hexadecimal, of the agent that lies there, if it is not the one that speaks
}

// NIC is a network interface with its addresses.
type NIC struct {
	Name  string         `json:"name"`
	MAC   string         `json:"mac"`
	Addrs []netip.Prefix `json:"addrs"`
}

// FoundTree is a file system of a disk that is mounted.
type FoundTree struct {
	Mount string `json:"mount"`
	Type  string `json:"type"`
	UUID  string `json:"uuid,omitempty"`
}

// Enlistment tells the agent what to do. Exactly one of Plan and Remove is set;
// with neither, it leaves.
type Enlistment struct {
	Plan        *Plan  `json:"plan,omitempty"`
	Certificate []byte `json:"certificate,omitempty"` // PEM, for the key of Found.CSR
	CA          []byte `json:"ca,omitempty"`          // PEM
	Remove      bool   `json:"remove,omitempty"`      // take away all that an enlistment has put there
}

// Done is what came of an Enlistment.
type Done struct {
	Failed  string   `json:"failed,omitempty"`
	Started bool     `json:"started"`         // the agent runs, or does no more
	Left    []string `json:"left,omitempty"`  // what was not removed, and why
	Wrote   []string `json:"wrote,omitempty"` // paths below the root
}

// FoundPlan is the plan of a machine that is as it was found: what an update in
// place needs to know of it. The error is a *RefusedError.
func FoundPlan(f Found, t Target) (*Plan, error) {
	p := &Plan{
		ID: t.Install, Node: t.Node, Domain: t.Domain, Role: t.Role, Image: t.Image, Arch: f.Arch, Firmware: f.Firmware,
		MAC: t.MAC, Addr: t.Addr, Gateway: t.Gateway, DNS: t.DNS, After: "reboot", Server: t.Server,
		DiskRule: "as it was found", Found: &FoundMachine{Root: f.Root, Note: f.Note},
	}
	if f.Layout != nil {
		for _, q := range f.Layout.Partitions {
			p.Partitions = append(p.Partitions, Partition{
				Number: q.Number, Start: q.Start, Size: q.Size, Type: q.Type, GUID: q.GUID, Name: q.Name, Attributes: q.Attributes, FS: q.FS,
			})
		}
	}
	for _, tree := range f.Trees {
		if p.FileSystemAt(tree.Mount) != nil {
			continue
		}
		part := Partition{FS: &imaging.FileSystem{Type: tree.Type, UUID: tree.UUID, Mount: tree.Mount}}
		if tree.Type == "vfat" && (tree.Mount == "/boot/efi" || tree.Mount == "/efi" || tree.Mount == "/boot") && p.ESP() == nil {
			part.Type = typeESP
		}
		p.Partitions = append(p.Partitions, part)
	}
	b, err := EncodePlan(p)
	if err == nil {
		_, err = DecodePlan(b)
	}
	if err != nil {
		return nil, &RefusedError{What: fmt.Sprintf("%s cannot be made a node: %v", f.Hostname, err), Hint: "enlist a machine that runs from a disk of its own"}
	}
	return p, nil
}

// FoundMachine is of a machine that doppel did not lay out.
type FoundMachine struct {
	Root string `json:"root,omitempty"` // root= of its kernel's command line
	Note string `json:"note,omitempty"` // why its layout is none that doppel knows; empty: it does
}

// checkFound refuses an update of a machine that is as it was found, when it
// could not be started afterwards: before anything is touched.
func (u *updater) checkFound() error {
	found := u.plan.Found
	if found == nil || u.keepsBoot() {
		return nil
	}
	hint := "give keep = [\"boot/**\", \"usr/lib/modules/**\"] in its [[sync]], and see to its kernels there yourself"
	esp := u.plan.ESP()
	switch {
	case found.Note != "":
		return &RefusedError{What: fmt.Sprintf("%s was not laid out by doppel (%s), and an initramfs of another machine may not find its root", u.plan.Node, found.Note), Hint: hint}
	case u.plan.Firmware == BIOS && u.o.Disk == "":
		return &RefusedError{What: u.plan.Node + " has no disk that is started by GRUB, so its loader could not be kept fit for its kernels", Hint: hint}
	case u.plan.Firmware == UEFI && (esp == nil || esp.FS == nil || esp.FS.Mount == ""):
		return &RefusedError{What: u.plan.Node + " has no EFI system partition mounted, so its loader could not be kept fit for its kernels", Hint: hint}
	}
	return nil
}

// keepsBoot tells whether the orders have the node keep its kernels.
func (u *updater) keepsBoot() bool {
	return u.ordered("boot/vmlinuz") && (u.ordered("usr/lib/modules/x") || u.ordered("lib/modules/x"))
}

// leavesBoot tells whether the node's loader and boot menu are left alone.
func (u *updater) leavesBoot() bool { return u.plan.Found != nil && u.keepsBoot() }

// foundFiles are what an enlistment, and the agent since, put on a machine, but
// for node.json, which says whose node it is: it comes last and goes last.
func foundFiles() []string {
	names := []string{agentPath, unitPath, wantsPath}
	for _, n := range []string{"node.key", "node.crt", "ca.crt", "plan.json", pairName, partedName, path.Base(markName)} {
		names = append(names, nodeDir+"/"+n)
	}
	return names
}

const (
	unitPath   = "etc/systemd/system/" + unitName
	wantsPath  = "etc/systemd/system/multi-user.target.wants/" + unitName
	partedName = "parted.json"
	// thereName is there while a machine is enlisted that had an agent already,
	// until node.json says so.
	thereName = nodeDir + "/agent-there"
	stateDir  = "var/lib/doppel"
)

// TablesPath is where a node's agent keeps the tables of packs between updates,
// below the root: in a directory that no image has.
const TablesPath = stateDir + "/tables"

// agentThere tells of a machine without a node.json whether the agent that lies
// there is somebody else's: a package's, say, and not that of an enlistment that
// was cut off, whose unit comes before it.
func agentThere(tree *os.Root) (bool, error) {
	if _, err := tree.Lstat(agentPath); err != nil {
		return false, ignoreAbsent(err)
	}
	if _, err := tree.Lstat(thereName); err == nil {
		return true, nil
	}
	unit, err := tree.ReadFile(unitPath)
	if ignoreAbsent(err) != nil {
		return false, err
	}
	begun, err := fs.ReadDir(tree.FS(), nodeDir)
	if ignoreAbsent(err) != nil {
		return false, err
	}
	return string(unit) != agentUnit && len(begun) == 0, nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Enlist makes the machine whose tree is at root a node, as an install would:
// its agent, the unit that starts it, and credentials of its own. Nothing else
// is touched. Doing it again comes to the same. It tells what it wrote.
func Enlist(root string, agent []byte, key []byte, e Enlistment) (wrote []string, err error) {
	tree, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	config := NodeConfig{Server: e.Plan.Server, Node: e.Plan.Node, Install: e.Plan.ID, Enlisted: true}
	if old, err := readNodeConfig(tree); err == nil && old.Enlisted {
		config.AgentThere = old.AgentThere
	} else if config.AgentThere, err = agentThere(tree); err != nil {
		return nil, err
	}
	plan, err := EncodePlan(e.Plan)
	if err != nil {
		return nil, err
	}
	about, err := configJSON(config)
	if err != nil {
		return nil, err
	}
	put := func(name string, content []byte, mode fs.FileMode) {
		if err == nil {
			err = writeBeneath(tree, name, content, mode)
			wrote = append(wrote, name)
		}
	}
	// What tells, should this be cut off, whose the agent is comes before it.
	if err := mkdirBeneath(tree, nodeDir, 0o700); err != nil {
		return nil, err
	}
	if config.AgentThere {
		if err := writeBeneath(tree, thereName, nil, 0o600); err != nil {
			return nil, err
		}
	}
	put(unitPath, []byte(agentUnit), 0o644)
	if !config.AgentThere {
		put(agentPath, agent, 0o755)
	}
	put(nodeDir+"/node.key", key, 0o600)
	put(nodeDir+"/node.crt", e.Certificate, 0o600)
	put(nodeDir+"/ca.crt", e.CA, 0o600)
	put(nodeDir+"/plan.json", plan, 0o600)
	put(nodeDir+"/node.json", about, 0o600)
	if err == nil {
		err = ignoreAbsent(tree.Remove(thereName))
	}
	if err != nil {
		return wrote, err
	}
	w := &identity{tree: tree, plan: e.Plan}
	return append(wrote, wantsPath), w.enable(unitName, "multi-user.target")
}

// Delist takes away what Enlist put on the machine whose tree is at root, and
// what the agent has kept there since. It tells what it left, and why.
func Delist(root string) (left []string, err error) {
	tree, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	config, err := readNodeConfig(tree)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		config = NodeConfig{Enlisted: true} // it was interrupted
		if config.AgentThere, err = agentThere(tree); err != nil {
			return nil, err
		}
	case err != nil:
		return nil, err
	case !config.Enlisted:
		return nil, &RefusedError{What: "this machine was installed by doppel, and not enlisted", Hint: "doppel node rm takes it out of the inventory"}
	}
	for _, name := range foundFiles() {
		if name == agentPath && config.AgentThere {
			left = append(left, "/"+name+": it was there before")
			continue
		}
		if err := ignoreAbsent(tree.Remove(name)); err != nil {
			return left, err
		}
	}
	if err := tree.RemoveAll(TablesPath); err != nil {
		return left, err
	}
	// Last, so that what was interrupted can be done again.
	for _, name := range []string{nodeDir + "/node.json", thereName} {
		if err := ignoreAbsent(tree.Remove(name)); err != nil {
			return left, err
		}
	}
	for _, dir := range []string{nodeDir, path.Dir(nodeDir), path.Dir(agentPath), stateDir} {
		_ = tree.Remove(dir) // what is not empty is somebody's
	}
	return left, nil
}

func readNodeConfig(tree *os.Root) (NodeConfig, error) {
	b, err := tree.ReadFile(nodeDir + "/node.json")
	if err != nil {
		return NodeConfig{}, err
	}
	return DecodeNodeConfig(b)
}
