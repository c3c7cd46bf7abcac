package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"doppel/imaging"
)

// captureFlags are the flags of doppel capture.
type captureFlags struct {
	name          string
	root          string
	key           string
	knownHosts    string
	sshConfig     string
	acceptNew     bool
	exclude       []string
	oneFileSystem bool
	sftp          bool
	sudo          bool
	full          bool
	pre, post     string
	limit         string
	limitCPU      string
	snapshot      string
	freeze        []string
	freezeFor     string
	postSnapshot  string
	state         string         // the state directory, when this machine is captured
	unattended    bool           // nobody is there to be asked
	watch         *imaging.Watch // nil: nothing is watched between captures

	// open opens a capture of a node that is reached through its agent.
	open func(ctx context.Context, node string) (net.Conn, error)
}

func newCapture(g *globals) *cobra.Command {
	var o captureFlags
	c := &cobra.Command{
		Use:   "capture [USER@]HOST[:PORT]|local|node:NODE",
		Short: "Capture a running host's file system as the next version of an image",
		Long: `Capture reads the tree at --root of a host over SSH, while it runs, and stores
it as the next version of an image. Nothing needs to be installed on the host,
and nothing is left there. HOST "local" captures this machine, without SSH;
"node:NODE" a node that doppel installed, through its agent and doppel serve.

Left out are the contents of /proc, /sys, /dev, /run, /tmp and /var/tmp, of
network and virtual file systems, and doppel's own state; the mount points
themselves stay.

--snapshot has the capture read from snapshots that are taken before it begins
and removed after it: of btrfs, and of logical volumes whose volume group has
room. With auto, file systems that can have none are read live, and the report
says why; with require, that is an error (but not for /boot and what is below
it). Snapshots slow down who writes to the host's disks as long as they are
there, and one of LVM's that has no more room ends the capture: by default none
are taken. --freeze holds back all who write to a file system while it is read.
README.md tells how databases are captured.

On the host the capture stands behind all other work (nice 19, I/O class idle),
and leaves the page cache as it was. --limit and --limit-cpu hold it back
further; for local they hold for what goes into the store, and for doppel
itself.

Exit codes: 0 done (also when nothing had changed, which makes no new version);
3 done, but a file never held still, SFTP could not carry something, a file
system had to be thawed before it was read, or a snapshot could not be removed,
as the report says.`,
		Example: `  doppel capture root@head --name head
  doppel capture admin@head:2222 --sudo --name head --exclude 'scratch/*'
  doppel capture local --name head`,
		Args:              exactArgs("HOST"),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.open, o.state = openThrough(g.socket()), g.state
			return runCapture(cmd.Context(), g, o, args[0], cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "`image` to add a version to (default: the host's name)")
	f.StringVar(&o.root, "root", "/", "`directory` of the host to capture")
	f.StringVarP(&o.key, "identity", "i", "", "private key `file`")
	f.StringVar(&o.knownHosts, "known-hosts", "", "known_hosts `file` (default: as ssh does)")
	f.StringVar(&o.sshConfig, "ssh-config", "", "ssh_config `file` (default: as ssh does)")
	f.BoolVar(&o.acceptNew, "accept-new", false, "accept the key of a host not known yet, without asking")
	f.StringArrayVar(&o.exclude, "exclude", nil, "leave out what matches the `glob`, taken from --root; repeatable")
	f.BoolVar(&o.oneFileSystem, "one-file-system", false, "stay on the file system of --root")
	f.BoolVar(&o.sftp, "sftp", false, "read by SFTP alone, where the agent cannot run (loses hard links, holes, xattrs)")
	f.BoolVar(&o.sudo, "sudo", false, "become root on the host with sudo")
	f.BoolVar(&o.full, "full", false, "read every file again, whatever the last capture knew")
	f.StringVar(&o.limit, "limit", "", "send no more than this `rate` a second from the host: 20M is 20 MB; k, M or G")
	f.StringVar(&o.limitCPU, "limit-cpu", "", "use no more of the host's CPUs than this `share` of one core, as top shows it: 50%, or 200% for two")
	f.StringVar(&o.snapshot, "snapshot", "off", "`when` to read from snapshots of btrfs and LVM: off, auto (where they can be had) or require")
	f.StringArrayVar(&o.freeze, "freeze", nil, "freeze what is mounted at this `directory` of the host while it is read, if it has no snapshot; repeatable")
	f.StringVar(&o.freezeFor, "freeze-for", "", "the longest `time` that anything is frozen (default 30s)")
	_ = c.RegisterFlagCompletionFunc("snapshot", oneOf("off", "auto", "require"))
	f.StringVar(&o.postSnapshot, "post-snapshot", "", "shell `command` to run on the host once the snapshots are taken, before the long reading; needs --snapshot require")
	f.StringVar(&o.pre, "pre", "", "shell `command` to run on the host before; if it fails, nothing is captured")
	f.StringVar(&o.post, "post", "", "shell `command` to run on the host afterwards, also when the capture failed")
	return c
}

func runCapture(ctx context.Context, g *globals, o captureFlags, host string, out io.Writer) error {
	if err := o.check(host); err != nil {
		return err
	}
	catalog, err := g.catalog()
	if err != nil {
		return err
	}
	h, err := reach(ctx, &o, host)
	if err != nil {
		return err
	}
	report, err := captureBetween(ctx, g, o, catalog, h, out)
	if e := h.close(); e != nil {
		newLog(os.Stderr).Warn("leaving the host", "error", e)
	}
	if report == nil {
		return err
	}
	if g.json {
		err = errors.Join(err, printEvent(out, "summary", report))
	} else {
		printCapture(out, report)
	}
	switch {
	case err != nil: // the version is there all the same
		return &partlyError{err}
	case report.Partial():
		return codeError(exitPartial)
	}
	return nil
}

// check refuses flags that cannot mean anything together.
func (o *captureFlags) check(host string) error {
	if host == local || strings.HasPrefix(host, nodePrefix) {
		for flag, given := range map[string]bool{"--identity": o.key != "", "--known-hosts": o.knownHosts != "", "--ssh-config": o.sshConfig != "",
			"--accept-new": o.acceptNew, "--sftp": o.sftp, "--sudo": o.sudo} {
			if given {
				return usagef("leave it out; doppel capture "+host+" needs no SSH", "%s means nothing for %s", flag, host)
			}
		}
	} else if !strings.HasPrefix(o.root, "/") {
		return usagef("give the path from the host's /", "--root: %q is not an absolute path", o.root)
	}
	if _, err := o.limits(); err != nil {
		return err
	}
	c, err := o.consistency()
	if err != nil {
		return err
	}
	if o.sftp && c.Wanted() {
		return usagef("leave --sftp out, so that the agent runs there", "--sftp cannot go together with --snapshot or --freeze: doppel runs nothing on the host that could take one")
	}
	if o.postSnapshot != "" && c.Snapshot != imaging.SnapshotRequire {
		return usagef("give --snapshot require, or use --post", "--post-snapshot needs to be sure of snapshots: without them it would end too early what keeps the host still")
	}
	if o.sftp && o.limitCPU != "" {
		return usagef("give --limit instead: the host then works for so many bytes and no more", "--sftp and --limit-cpu cannot go together: doppel runs nothing on the host that it could hold back")
	}
	if o.sftp && o.sudo {
		return usagef("log in as root for --sftp, or let the agent run with --sudo alone", "--sftp and --sudo cannot go together: SFTP cannot become root")
	}
	return nil
}

// captureBetween runs the capture between its hooks. A report with an error is
// of a capture after which something else went wrong.
func captureBetween(ctx context.Context, g *globals, o captureFlags, catalog *imaging.Catalog, h *host, out io.Writer) (report *imaging.CaptureReport, err error) {
	limits, err := o.limits()
	if err != nil {
		return nil, err
	}
	if o.pre != "" {
		if err := h.shell(ctx, o.pre); err != nil {
			return nil, fmt.Errorf("the --pre command did not succeed, so nothing was captured: %w", err)
		}
	}
	if o.post != "" {
		// Also when the capture was interrupted: it undoes what --pre did.
		defer func() {
			if e := h.shell(context.WithoutCancel(ctx), o.post); e != nil {
				err = errors.Join(err, fmt.Errorf("the --post command did not succeed: %w", e))
			}
		}()
	}
	src, err := h.source(ctx)
	if err != nil {
		return nil, err
	}
	consistency, err := o.consistency()
	if err != nil {
		return nil, err
	}
	p := newProgress(g, out, "capture "+o.name)
	report, err = imaging.Capture(ctx, catalog, src, imaging.CaptureOptions{
		Name: o.name, Root: o.root, Origin: h.name, Exclude: o.exclude, OneFileSystem: o.oneFileSystem, Full: o.full,
		Limits: limits, Watch: o.watch, Log: newLog(os.Stderr), Consistency: consistency,
		Instant: func(ctx context.Context) error {
			if o.postSnapshot == "" {
				return nil
			}
			if err := h.shell(ctx, o.postSnapshot); err != nil {
				return fmt.Errorf("the --post-snapshot command did not succeed, so nothing was captured: %w", err)
			}
			return nil
		},
		Progress: func(c imaging.CaptureProgress) {
			p.update(c.Bytes, 0, fmt.Sprintf("in %d entries; read %s, sent %s", c.Entries, bytesText(c.BytesRead), bytesText(c.BytesSent)))
		},
	})
	p.finish()
	if !h.stays {
		if e := src.Close(); e != nil {
			newLog(os.Stderr).Warn("ending the far end of the capture", "error", e)
		}
	}
	if report != nil && o.unattended {
		logConsistency(report.Consistency)
	}
	if report == nil && ctx.Err() != nil {
		err = &hintError{err, "what has arrived is kept: the same command again reads and sends only the rest"}
	}
	return report, err
}

func printCapture(w io.Writer, r *imaging.CaptureReport) {
	if r.Unchanged {
		fmt.Fprintf(w, "%s@%d: nothing has changed, no new version\n", r.Image, r.Version)
	} else {
		fmt.Fprintf(w, "%s@%d  %s\n", r.Image, r.Version, r.Digest)
	}
	fmt.Fprintf(w, "%d entries, %s; read %s, sent %s, stored %s, in %.1f s\n",
		r.Entries, bytesText(r.BytesTotal), bytesText(r.BytesRead), bytesText(r.BytesSent), bytesText(r.BytesAdded), r.Seconds)
	section := func(title string, paths []string) {
		if len(paths) == 0 {
			return
		}
		fmt.Fprintf(w, "%s:\n", title)
		for i, p := range paths {
			if i == 20 {
				fmt.Fprintf(w, "  … and %d more (--json lists all)\n", len(paths)-i)
				break
			}
			fmt.Fprintf(w, "  %s\n", printable(p))
		}
	}
	var secrets, lost []string
	for _, s := range r.Secrets {
		secrets = append(secrets, s.Class+"  "+s.Path)
	}
	for _, n := range r.Lost {
		lost = append(lost, n.Path+"  "+n.Detail)
	}
	section("secrets, sealed for their class", secrets)
	section("went away while the tree was read", r.Vanished)
	section("changed whenever they were read", r.Unstable)
	section("could not be carried by SFTP", lost)
	printConsistency(section, r.Consistency)
}
