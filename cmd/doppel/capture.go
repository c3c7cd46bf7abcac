package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"doppel/imaging"
	"doppel/imaging/remote"
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
}

func newCapture(g *globals) *cobra.Command {
	var o captureFlags
	c := &cobra.Command{
		Use:   "capture [USER@]HOST[:PORT]|local",
		Short: "Capture a running host's file system as the next version of an image",
		Long: `Capture reads the tree at --root of a host over SSH, while it runs, and stores
it as the next version of an image. Nothing needs to be installed on the host,
and nothing is left there. HOST "local" captures this machine, without SSH.

Left out are the contents of /proc, /sys, /dev, /run, /tmp and /var/tmp, of
network and virtual file systems, and doppel's own state; the mount points
themselves stay.

Exit codes: 0 done (also when nothing had changed, which makes no new version);
3 done, but a file never held still or SFTP could not carry something, as the
report says.`,
		Example: `  doppel capture root@head --name head
  doppel capture admin@head:2222 --sudo --name head --exclude 'scratch/*'
  doppel capture local --name head`,
		Args: exactArgs("HOST"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCapture(cmd.Context(), g, o, args[0], cmd.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&o.name, "name", "", "image to add a version to (default: the host's name)")
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
	f.StringVar(&o.pre, "pre", "", "shell `command` to run on the host before; if it fails, nothing is captured")
	f.StringVar(&o.post, "post", "", "shell `command` to run on the host afterwards, also when the capture failed")
	return c
}

func runCapture(ctx context.Context, g *globals, o captureFlags, host string, out io.Writer) error {
	catalog, err := imaging.OpenCatalog(g.state, imaging.CatalogOptions{Log: newLog(os.Stderr)})
	if err != nil {
		return err
	}
	src, shell, name, err := openSource(ctx, o, host)
	if err != nil {
		return err
	}
	defer src.Close()
	if o.name == "" {
		o.name = name
	}
	report, err := captureBetween(ctx, g, o, catalog, src, shell, host, out)
	if err != nil {
		return err
	}
	if g.json {
		if err := printEvent(out, "summary", report); err != nil {
			return err
		}
	} else {
		printCapture(out, report)
	}
	if report.Partial() {
		return codeError(exitPartial)
	}
	return nil
}

// captureBetween runs the capture between its hooks.
func captureBetween(ctx context.Context, g *globals, o captureFlags, catalog *imaging.Catalog, src imaging.Source, shell func(context.Context, string) error, host string, out io.Writer) (report *imaging.CaptureReport, err error) {
	if o.pre != "" {
		if err := shell(ctx, o.pre); err != nil {
			return nil, fmt.Errorf("the --pre command on the host, so nothing was captured: %w", err)
		}
	}
	if o.post != "" {
		defer func() {
			if e := shell(context.WithoutCancel(ctx), o.post); e != nil {
				err = errors.Join(err, fmt.Errorf("the --post command on the host: %w", e))
			}
		}()
	}
	exclude := o.exclude
	if host == "local" {
		// doppel's own store is not part of the head.
		if own, err := filepath.Abs(g.state); err == nil {
			if rel, err := filepath.Rel(o.root, own); err == nil && !strings.HasPrefix(rel, "..") {
				exclude = append(exclude, escapeGlob(rel))
			}
		}
	}
	p := newProgress(g, out, "capture "+o.name)
	defer p.finish()
	return imaging.Capture(ctx, catalog, src, imaging.CaptureOptions{
		Name: o.name, Root: o.root, Origin: host, Exclude: exclude, OneFileSystem: o.oneFileSystem, Full: o.full,
		Log: newLog(os.Stderr),
		Progress: func(c imaging.CaptureProgress) {
			p.update(c.Bytes, 0, fmt.Sprintf("in %d entries; read %s, sent %s", c.Entries, bytesText(c.BytesRead), bytesText(c.BytesSent)))
		},
	})
}

// escapeGlob makes a path match only itself.
func escapeGlob(p string) string {
	return regexp.MustCompile(`[*?\[\\]`).ReplaceAllString(p, `\$0`)
}

// openSource connects to the host. It also gives a way to run a shell command
// there, and the host's short name.
func openSource(ctx context.Context, o captureFlags, host string) (imaging.Source, func(context.Context, string) error, string, error) {
	if host == "local" {
		if os.Geteuid() != 0 {
			return nil, nil, "", &hintError{errors.New("only root can read a whole system"), "run it as root: sudo doppel capture local"}
		}
		name, err := os.Hostname()
		if err != nil {
			return nil, nil, "", err
		}
		short, _, _ := strings.Cut(name, ".")
		return imaging.NewLocal(o.root), localShell, short, nil
	}
	target, err := remote.ParseTarget(host)
	if err != nil {
		return nil, nil, "", &usageError{err.Error(), "name the host as [USER@]HOST[:PORT]"}
	}
	var keys []string
	if o.key != "" {
		keys = []string{o.key}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, nil, "", err
	}
	conn, err := remote.Dial(ctx, target, remote.Options{
		Home: home, Keys: keys, KnownHosts: o.knownHosts, Config: o.sshConfig, AcceptNew: o.acceptNew, Prompt: prompter(), Log: newLog(os.Stderr),
	})
	if err != nil {
		return nil, nil, "", err
	}
	var src imaging.Source
	if o.sftp {
		src, err = remote.SFTP(ctx, conn)
	} else {
		var agent string
		if agent, err = findAgent(""); err == nil {
			src, err = remote.Agent(ctx, conn, remote.AgentOptions{Path: agent, Sudo: o.sudo, Prompt: prompter()})
		}
	}
	if err != nil {
		return nil, nil, "", errors.Join(err, conn.Close())
	}
	short, _, _ := strings.Cut(target.Host, ".")
	shell := func(ctx context.Context, line string) error {
		out, err := conn.Run(ctx, line)
		if len(out) > 0 {
			fmt.Fprintf(os.Stderr, "%s", out)
		}
		return err
	}
	return overSSH{src, conn}, shell, short, nil
}

// overSSH is a source whose connection ends with it.
type overSSH struct {
	imaging.Source
	conn *remote.Conn
}

func (s overSSH) Close() error { return errors.Join(s.Source.Close(), s.conn.Close()) }

func localShell(ctx context.Context, line string) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	return cmd.Run()
}

// findAgent is the agent's binary: where the configuration says, beside this
// program, or in PATH.
func findAgent(configured string) (string, error) {
	if configured != "" {
		if _, err := os.Stat(configured); err != nil {
			return "", &hintError{fmt.Errorf("the agent: %w", err), "agent.path in the configuration names doppel-agent"}
		}
		return configured, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "doppel-agent")
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	if p, err := exec.LookPath("doppel-agent"); err == nil {
		return p, nil
	}
	return "", &hintError{errors.New("doppel-agent is not beside doppel, nor in PATH"), "install both programs in one directory"}
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
	section("changed whenever they were read", r.Unstable)
	section("could not be carried by SFTP", lost)
}
