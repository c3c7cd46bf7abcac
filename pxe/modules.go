package pxe

import (
	"bufio"
	"bytes"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"
)

// moduleTree is what depmod wrote about a kernel's modules.
type moduleTree struct {
	files   map[string]string   // name → path below the modules' directory
	needs   map[string][]string // name → names that must be loaded before it
	wants   map[string][]string // name → names, or aliases, to load before it if possible
	aliases []alias             // in the order of the file
	builtin map[string]bool     // name
}

// alias says that a device or a word that matches Pattern is served by a module.
type alias struct {
	Pattern string `json:"pattern"`
	Module  string `json:"module"`
}

// moduleName is how the kernel names the module of a file: its base name, with
// _ for -, which the kernel takes for the same.
func moduleName(file string) string {
	base := path.Base(file)
	if i := strings.Index(base, ".ko"); i > 0 {
		base = base[:i]
	}
	return strings.ReplaceAll(base, "-", "_")
}

// lines calls fn with the fields of every line that is not blank or a comment.
func lines(b []byte, fn func(n int, line string) error) error {
	sc := bufio.NewScanner(bytes.NewReader(b))
	// A line of modules.dep names every module that one needs: some KiB at most.
	sc.Buffer(nil, 1<<20)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if err := fn(n, line); err != nil {
			return err
		}
	}
	return sc.Err()
}

// parseDep reads modules.dep: "PATH: PATH PATH …", what a module needs, with
// the one to load first at the end.
func parseDep(b []byte) (files map[string]string, needs map[string][]string, err error) {
	files, needs = map[string]string{}, map[string][]string{}
	err = lines(b, func(n int, line string) error {
		file, deps, ok := strings.Cut(line, ":")
		if !ok || !insideTree(file) {
			return fmt.Errorf("modules.dep, line %d: want PATH: PATHS", n)
		}
		name := moduleName(file)
		files[name] = file
		var list []string
		for _, d := range strings.Fields(deps) {
			if !insideTree(d) {
				return fmt.Errorf("modules.dep, line %d: %q is no path of a module", n, d)
			}
			list = append(list, moduleName(d))
		}
		slices.Reverse(list)
		needs[name] = list
		return nil
	})
	return files, needs, err
}

// insideTree tells whether a path of modules.dep stays below the modules'
// directory. Some depmods write it with the directory's own absolute path, for
// modules outside of it; there are none such in a distribution's kernel.
func insideTree(p string) bool {
	return p != "" && !path.IsAbs(p) && path.Clean(p) == p && p != "." && p != ".." && !strings.HasPrefix(p, "../") && strings.Contains(path.Base(p), ".ko")
}

// parseAlias reads modules.alias: "alias PATTERN MODULE".
func parseAlias(b []byte) ([]alias, error) {
	var list []alias
	err := lines(b, func(n int, line string) error {
		// A pattern has no blanks, but DMI's come near: the module is the last.
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "alias" {
			return fmt.Errorf("modules.alias, line %d: want alias PATTERN MODULE", n)
		}
		list = append(list, alias{Pattern: strings.Join(f[1:len(f)-1], " "), Module: moduleName(f[len(f)-1])})
		return nil
	})
	return list, err
}

// parseSoftdep reads modules.softdep: "softdep MODULE pre: A B post: C". What
// belongs after a module is for udev's world, and left out.
func parseSoftdep(b []byte) (map[string][]string, error) {
	wants := map[string][]string{}
	err := lines(b, func(n int, line string) error {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "softdep" {
			return fmt.Errorf("modules.softdep, line %d: want softdep MODULE pre: MODULES", n)
		}
		name, pre := moduleName(f[1]), false
		for _, w := range f[2:] {
			switch {
			case w == "pre:":
				pre = true
			case w == "post:":
				pre = false
			case pre:
				wants[name] = append(wants[name], w)
			}
		}
		return nil
	})
	return wants, err
}

// parseBuiltin reads modules.builtin: the paths that modules would have.
func parseBuiltin(b []byte) (map[string]bool, error) {
	names := map[string]bool{}
	err := lines(b, func(_ int, line string) error {
		names[moduleName(line)] = true
		return nil
	})
	return names, err
}

// What of a kernel's modules an installer needs: all that reaches networks,
// disks and the file systems that are installed. Wireless, Fibre Channel and
// iSCSI are not ways to a node's own disk or a boot server.
func wanted(dir, name string) bool {
	switch name {
	case "virtio_net", "virtio_blk", "virtio_scsi", "virtio_rng", "xen_netfront", "xen_blkfront", "nvme",
		"af_packet", "vmd",
		"ext4", "xfs", "vfat", "fat", "efivarfs", "nls_cp437", "nls_iso8859_1", "nls_ascii", "nls_utf8",
		"crc32c_generic", "crc32c_intel", "crc32c_arm64", "libcrc32c", "crc32_generic",
		"sd_mod", "scsi_mod", "crc_t10dif", "crct10dif_generic":
		return true
	}
	under := func(dirs ...string) bool {
		return slices.ContainsFunc(dirs, func(d string) bool { return dir == d || strings.HasPrefix(dir, d+"/") })
	}
	if under("kernel/drivers/scsi/qla2xxx", "kernel/drivers/scsi/qla4xxx", "kernel/drivers/scsi/qedi", "kernel/drivers/scsi/qedf",
		"kernel/drivers/scsi/lpfc", "kernel/drivers/scsi/bfa", "kernel/drivers/scsi/elx", "kernel/drivers/scsi/fcoe", "kernel/drivers/scsi/libfc",
		"kernel/drivers/scsi/bnx2fc", "kernel/drivers/scsi/bnx2i", "kernel/drivers/scsi/cxgbi", "kernel/drivers/scsi/be2iscsi",
		"kernel/drivers/scsi/device_handler", "kernel/drivers/scsi/pcmcia", "kernel/drivers/net/ethernet/8390/pcmcia") {
		return false
	}
	if dir == "kernel/drivers/scsi" {
		switch name {
		case "scsi_debug", "scsi_transport_fc", "scsi_transport_iscsi", "iscsi_tcp", "iscsi_boot_sysfs", "libiscsi", "libiscsi_tcp", "sr_mod", "sg", "ses", "st", "ch":
			return false
		}
	}
	return under("kernel/drivers/net/ethernet", "kernel/drivers/net/hyperv", "kernel/drivers/net/vmxnet3", "kernel/drivers/net/phy",
		"kernel/drivers/virtio", "kernel/drivers/ata", "kernel/drivers/scsi",
		"kernel/drivers/message/fusion", "kernel/drivers/hv")
}

// always are the modules that no device asks for.
var always = []string{"af_packet", "crc32c_generic", "ext4", "xfs", "vfat", "nls_cp437", "nls_iso8859_1", "nls_ascii", "nls_utf8", "efivarfs", "sd_mod"}

// index is what the agent's loader reads: /lib/modules/RELEASE/doppel.json.
type index struct {
	Release string        `json:"release"`
	Modules []indexModule `json:"modules"` // by name
	Aliases []alias       `json:"aliases"` // in modules.alias's order
	Always  []string      `json:"always"`  // to load without a device
}

// indexModule is one module: Wants are loaded before it where that is
// possible, Needs must be.
type indexModule struct {
	Name  string   `json:"name"`
	File  string   `json:"file"` // below /lib/modules/RELEASE, decompressed
	Needs []string `json:"needs,omitempty"`
	Wants []string `json:"wants,omitempty"`
}

// choose takes of the tree what an installer needs, with what that needs.
func (t *moduleTree) choose(release string) index {
	chosen := map[string]bool{}
	var take func(name string)
	take = func(name string) {
		if _, ok := t.files[name]; !ok || chosen[name] {
			return
		}
		chosen[name] = true
		for _, n := range t.needs[name] {
			take(n)
		}
		for _, w := range t.wants[name] {
			for _, n := range t.resolve(w) {
				take(n)
			}
		}
	}
	for name, file := range t.files {
		if wanted(path.Dir(file), name) {
			take(name)
		}
	}
	x := index{Release: release}
	for name := range chosen {
		m := indexModule{Name: name, File: plainFile(t.files[name]), Needs: t.needs[name]}
		for _, w := range t.wants[name] {
			m.Wants = append(m.Wants, t.resolve(w)...)
		}
		x.Modules = append(x.Modules, m)
	}
	sort.Slice(x.Modules, func(i, j int) bool { return x.Modules[i].Name < x.Modules[j].Name })
	for _, a := range t.aliases {
		if chosen[a.Module] {
			x.Aliases = append(x.Aliases, a)
		}
	}
	for _, name := range always {
		if chosen[name] {
			x.Always = append(x.Always, name)
		}
	}
	return x
}

// resolve finds the modules that a soft dependency names, itself or by an
// alias ("crc32c" is any of several).
func (t *moduleTree) resolve(word string) []string {
	name := strings.ReplaceAll(word, "-", "_")
	if _, ok := t.files[name]; ok {
		return []string{name}
	}
	if t.builtin[name] {
		return nil
	}
	var list []string
	for _, a := range t.aliases {
		if _, ok := t.files[a.Module]; ok && a.Pattern == word && !slices.Contains(list, a.Module) {
			list = append(list, a.Module)
		}
	}
	return list
}

// plainFile is the name a module has once it is decompressed.
func plainFile(file string) string {
	for _, ext := range []string{".xz", ".gz", ".zst"} {
		file = strings.TrimSuffix(file, ext)
	}
	return file
}
