package clone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"doppel/imaging"
)

// bootloader makes the disk start: GRUB from the image's own files, and a
// grub.cfg that names this disk's root.
func (in *install) bootloader(ctx context.Context) error {
	if err := in.devices(ctx, in.target); err != nil {
		return err
	}
	install := in.bios
	if in.plan.Firmware == UEFI {
		install = in.uefi
	}
	if err := install(ctx); err != nil {
		return err
	}
	if err := in.grubConfig(ctx); err != nil {
		return err
	}
	return in.unmountBelow(ctx, in.target)
}

func (in *install) bios(ctx context.Context) error {
	tool := in.program("grub-install", "grub2-install")
	if tool == "" {
		return errors.New("the image has no grub-install")
	}
	return in.run(ctx, in.target, []string{tool, "--target=i386-pc", in.plan.Disk.Path})
}

// efiNames are GRUB's target, and the path that firmware starts from when it
// has no entry of its own, by architecture.
func efiNames(arch string) (target, fallback string) {
	if arch == "aarch64" {
		return "arm64-efi", "BOOTAA64.EFI"
	}
	return "x86_64-efi", "BOOTX64.EFI"
}

// uefi puts GRUB on the ESP twice: at the path that every firmware falls back
// to, and where the distribution keeps it and its updates go. The firmware's
// variables are written by us, since grub-install wants efibootmgr for it.
func (in *install) uefi(ctx context.Context) error {
	esp := in.plan.ESP()
	if esp == nil || esp.FS == nil || esp.FS.Mount == "" {
		return errors.New("the plan has no EFI system partition")
	}
	tool := in.program("grub-install", "grub2-install")
	if tool == "" {
		return errors.New("the image has no grub-install")
	}
	target, fallback := efiNames(in.plan.Arch)
	base := []string{tool, "--target=" + target, "--efi-directory=" + esp.FS.Mount, "--no-nvram"}
	if in.plan.Found != nil {
		return in.foundUEFI(ctx, base, esp.FS.Mount, fallback)
	}
	if id := in.image.Facts.OSRelease["ID"]; id != "" {
		if err := in.run(ctx, in.target, append(slices.Clone(base), "--bootloader-id="+id)); err != nil {
			return err
		}
	}
	if err := in.run(ctx, in.target, append(base, "--removable")); err != nil {
		return err
	}
	loader := "EFI/BOOT/" + fallback
	err := in.m.BootEntry(ctx, in.plan, BootEntry{Label: "doppel " + in.plan.Node, Partition: esp.Number, Loader: loader})
	if err != nil {
		// The fallback path starts without an entry.
		in.o.Log.Warn("no boot entry was added; the firmware starts the disk by its fallback path", "error", err)
		in.report(StageBootloader, "no boot entry was added: "+err.Error(), 0, 0)
	}
	return nil
}

// foundUEFI renews GRUB where a machine that is as it was found has it, and
// leaves the firmware's variables alone.
func (in *install) foundUEFI(ctx context.Context, base []string, esp, fallback string) error {
	tree, err := os.OpenRoot(in.target)
	if err != nil {
		return err
	}
	defer tree.Close()
	there := func(name string) bool { _, err := tree.Stat(path.Join(esp[1:], name)); return err == nil }
	if id := in.image.Facts.OSRelease["ID"]; id != "" && there("EFI/"+id) {
		if err := in.run(ctx, in.target, append(slices.Clone(base), "--bootloader-id="+id)); err != nil {
			return err
		}
	}
	if !there("EFI/BOOT/" + fallback) {
		return nil
	}
	return in.run(ctx, in.target, append(slices.Clone(base), "--removable"))
}

// program is the path, below the image's root, of the first of the programs
// that it has.
func (in *install) program(names ...string) string {
	for _, n := range names {
		if t := findTool(in.image.Boot, n); t != "" {
			return "/" + t
		}
	}
	for _, n := range names {
		for _, dir := range []string{"usr/sbin/", "usr/bin/", "sbin/", "bin/"} {
			if in.index.has(dir + n) {
				return "/" + dir + n
			}
		}
	}
	return ""
}

// grubConfig keeps the head's own grub.cfg where it is as true here as there,
// and makes one where it is not.
func (in *install) grubConfig(ctx context.Context) error {
	name := in.configName()
	if in.keepsConfig(name) && in.checkConfig(name) == nil {
		return nil
	}
	if err := in.makeConfig(ctx, name); err != nil {
		return err
	}
	return in.checkConfig(name)
}

// makeConfig has GRUB make a grub.cfg, without the kernels that are hidden.
func (in *install) makeConfig(ctx context.Context, name string, hide ...string) error {
	if in.plan.Found == nil { // which has its own
		if err := in.consoles(); err != nil {
			return err
		}
	}
	program := in.program("grub-mkconfig", "grub2-mkconfig")
	if program == "" {
		return errors.New("the image has no grub-mkconfig to make its grub.cfg with")
	}
	return in.m.Run(ctx, Command{Root: in.target, Args: []string{program, "-o", "/" + name}, Hide: hide})
}

// configName is where the image has its grub.cfg.
func (in *install) configName() string {
	if in.index.has("boot/grub2") || in.program("grub2-mkconfig") != "" && !in.index.has("boot/grub") {
		return "boot/grub2/grub.cfg"
	}
	return "boot/grub/grub.cfg"
}

// keepsConfig tells whether the head's grub.cfg can serve: same firmware, same
// kind of table, same file systems for the root and for /boot.
func (in *install) keepsConfig(name string) bool {
	l := in.image.Layout
	if in.plan.Found != nil || l == nil || l.Table != "gpt" || !in.index.has(name) || in.image.Facts.Firmware != string(in.plan.Firmware) {
		return false
	}
	for _, dir := range []string{"/", "/boot"} {
		var head string
		for _, p := range l.Partitions {
			if p.FS != nil && p.FS.Mount == dir {
				head = p.FS.UUID
			}
		}
		here := ""
		if p := in.plan.FileSystemAt(dir); p != nil {
			here = p.FS.UUID
		}
		if head != here {
			return false
		}
	}
	return true
}

// checkConfig sees that a grub.cfg starts a kernel of the image, which is there,
// with this disk's root: by its UUID, or by that of the partition.
func (in *install) checkConfig(name string) error {
	tree, err := os.OpenRoot(in.target)
	if err != nil {
		return err
	}
	defer tree.Close()
	b, err := tree.ReadFile(name)
	if err != nil {
		return fmt.Errorf("check GRUB's configuration: %w", err)
	}
	text := string(b)
	for _, entry := range in.loaderEntries(tree) {
		text += entry
	}
	root := in.plan.FileSystemAt("/")
	if !names(text, root.FS.UUID) && !names(strings.ToUpper(text), root.GUID) && (in.plan.Found == nil || !names(text, in.plan.Found.Root)) {
		return fmt.Errorf("check GRUB's configuration: %s does not name the root file system %s", name, root.FS.UUID)
	}
	if !slices.ContainsFunc(in.image.Boot.Kernels, func(k imaging.Kernel) bool {
		_, err := tree.Lstat(k.Path)
		return err == nil && names(text, path.Base(k.Path))
	}) {
		return fmt.Errorf("check GRUB's configuration: %s starts none of the image's kernels", name)
	}
	return nil
}

// names tells whether a text has a word, which may be none.
func names(text, word string) bool { return word != "" && strings.Contains(text, word) }

// loaderEntries are the Boot Loader Specification's entries, which Red Hat's
// grub.cfg only points to.
func (in *install) loaderEntries(tree *os.Root) []string {
	names, err := fs.Glob(tree.FS(), "boot/loader/entries/*.conf")
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range names {
		if b, err := tree.ReadFile(n); err == nil {
			out = append(out, string(b))
		}
	}
	return out
}

// consoles keeps the consoles that the head's kernel was started with: a node
// whose console is its serial line would start, and say nothing. Debian's
// grub-mkconfig reads the files in default/grub.d after default/grub.
func (in *install) consoles() error {
	tree, err := os.OpenRoot(in.target)
	if err != nil {
		return err
	}
	defer tree.Close()
	defaults := ""
	for _, name := range []string{"etc/default/grub", "etc/default/grub.d/*.cfg"} {
		found, err := fs.Glob(tree.FS(), name)
		if err != nil {
			return err
		}
		for _, f := range found {
			b, err := tree.ReadFile(f)
			if err != nil {
				return fmt.Errorf("read %s of the node: %w", f, err)
			}
			defaults += string(b)
		}
	}
	var keep []string
	for _, word := range strings.Fields(in.image.Facts.Cmdline) {
		if isConsole(word) && !strings.Contains(defaults, word) {
			keep = append(keep, word)
		}
	}
	if len(keep) == 0 {
		return nil
	}
	text := fmt.Sprintf("# Written by doppel: the consoles that the head was started with.\nGRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX %s\"\n", strings.Join(keep, " "))
	return writeBeneath(tree, "etc/default/grub.d/doppel.cfg", []byte(text), 0o644)
}

// isConsole tells whether a word of a kernel's command line names a console,
// and nothing that a shell would take apart.
func isConsole(word string) bool {
	value, ok := strings.CutPrefix(word, "console=")
	if !ok {
		return false
	}
	return value != "" && strings.Trim(value, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,") == ""
}

// agentUnit starts the agent that reports the node up, which means that
// somebody can log in. Its updates stand behind the node's own work, but not so
// far that a busy node never gets one.
const agentUnit = `[Unit]
Description=doppel's agent on an installed node
Wants=network-online.target
After=network-online.target ssh.service sshd.service

[Service]
ExecStart=/usr/lib/doppel/doppel-agent node
Restart=on-failure
RestartSec=10
Nice=10
IOSchedulingPriority=7

[Install]
WantedBy=multi-user.target
`

const (
	agentPath = "usr/lib/doppel/doppel-agent"
	unitName  = "doppel-agent.service"
	nodeDir   = "etc/doppel/node"
)

// agent gives the node its agent, the unit that starts it, and credentials of
// its own.
func (in *install) agent(ctx context.Context) error {
	if len(in.o.Agent) == 0 || in.o.Certificate == nil {
		return errors.New("there is no agent, or nobody to ask for its credentials")
	}
	tree, err := os.OpenRoot(in.target)
	if err != nil {
		return err
	}
	defer tree.Close()
	// What of an older agent may be in the image goes; modes are ours.
	for _, name := range []string{agentPath, nodeDir} {
		if err := tree.RemoveAll(name); err != nil {
			return err
		}
	}
	if err := writeBeneath(tree, agentPath, in.o.Agent, 0o755); err != nil {
		return err
	}
	if err := writeBeneath(tree, unitPath, []byte(agentUnit), 0o644); err != nil {
		return err
	}
	w := &identity{tree: tree, plan: in.plan, image: in.image}
	if err := w.enable(unitName, "multi-user.target"); err != nil {
		return err
	}
	cred, err := in.o.Certificate(ctx)
	if err != nil {
		return fmt.Errorf("ask for the node's certificate: %w", err)
	}
	if err := mkdirBeneath(tree, nodeDir, 0o700); err != nil {
		return err
	}
	about, err := nodeJSON(in.plan)
	if err != nil {
		return err
	}
	plan, err := EncodePlan(in.plan)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"node.crt": cred.Certificate, "node.key": cred.Key, "ca.crt": cred.CA, "node.json": about, "plan.json": plan} {
		if err := writeBeneath(tree, filepath.Join(nodeDir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
