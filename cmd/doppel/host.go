package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"doppel/imaging"
	"doppel/imaging/remote"
	"doppel/imaging/wire"
	"doppel/web"
)

// local is the HOST that means this machine.
const local = "local"

// nodePrefix is how a HOST begins that names a node of the inventory, which is
// reached through its agent.
const nodePrefix = "node:"

// host is where a capture is taken from.
type host struct {
	name   string                                       // as the user wrote it
	shell  func(ctx context.Context, line string) error // runs a command line there
	source func(context.Context) (imaging.Source, error)
	stays  bool // the source is not to be closed after a capture
	close  func() error
}

// reach connects to the host, unless it is this machine. What the user left
// open in o is filled in.
func reach(ctx context.Context, o *captureFlags, name string) (*host, error) {
	if name == local {
		return reachLocal(o)
	}
	if node, ok := strings.CutPrefix(name, nodePrefix); ok {
		return reachNode(o, node)
	}
	target, err := remote.ParseTarget(name)
	if err != nil {
		return nil, &usageError{err.Error(), "name the host as [USER@]HOST[:PORT], or local for this machine"}
	}
	if err := o.fillName(shortName(target.Host)); err != nil {
		return nil, err
	}
	agent := ""
	if !o.sftp {
		if agent, err = findAgent(""); err != nil {
			return nil, err
		}
	}
	conn, prompt, err := dial(ctx, o, target)
	if err != nil {
		return nil, err
	}
	h := &host{name: name, close: conn.Close}
	h.shell = func(ctx context.Context, line string) error {
		out, err := conn.Run(ctx, line)
		_, _ = os.Stderr.Write(out)
		return err
	}
	h.source = func(ctx context.Context) (imaging.Source, error) {
		if o.sftp {
			return remote.SFTP(ctx, conn)
		}
		return remote.Agent(ctx, conn, remote.AgentOptions{Path: agent, Sudo: o.sudo, Prompt: prompt})
	}
	return h, nil
}

// dial connects to a host by SSH. It gives what asks the user, too; nil: nobody
// is there to be asked.
func dial(ctx context.Context, o *captureFlags, target remote.Target) (*remote.Conn, func(string, bool) (string, error), error) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, nil, fmt.Errorf("looking for SSH's configuration: %w", err)
	}
	var keys []string
	if o.key != "" {
		keys = []string{o.key}
	}
	var prompt func(string, bool) (string, error)
	if !o.unattended {
		prompt = prompter(ctx)
	}
	conn, err := remote.Dial(ctx, target, remote.Options{
		Home: home, Keys: keys, KnownHosts: o.knownHosts, Config: o.sshConfig, AcceptNew: o.acceptNew, Prompt: prompt, Log: newLog(os.Stderr),
	})
	return conn, prompt, err
}

// reachNode reaches a node through its agent, which the daemon gives work.
func reachNode(o *captureFlags, node string) (*host, error) {
	if err := o.fillName(node); err != nil {
		return nil, err
	}
	noShell := func(context.Context, string) error {
		return &hintError{errors.New("no command can be run on a node through its agent"), "capture it by SSH, or leave the commands out"}
	}
	return &host{
		name:  nodePrefix + node,
		shell: noShell,
		source: func(ctx context.Context) (imaging.Source, error) {
			c, err := o.open(ctx, node)
			if err != nil {
				return nil, err
			}
			return wire.NewNetSource(ctx, c, version)
		},
		close: func() error { return nil },
	}, nil
}

// openThrough opens a capture of a node by way of the daemon's socket.
func openThrough(socket string) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, node string) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, &hintError{fmt.Errorf("no doppel serve answers on %s: %w", socket, err), "start doppel serve: nodes are reached through it; or capture by SSH"}
		}
		u, err := wire.Upgrade(ctx, c, "doppel", web.CapturePath(node))
		if no, ok := errors.AsType[*wire.RefusedError](err); ok {
			return nil, &web.Error{Status: no.Status, What: no.What, Hint: no.Hint}
		}
		return u, err
	}
}

func reachLocal(o *captureFlags) (*host, error) {
	if os.Geteuid() != 0 {
		return nil, &hintError{errors.New("only root can read a whole system"), "run it as root: sudo doppel capture local"}
	}
	var err error
	if o.root, err = filepath.Abs(o.root); err != nil {
		return nil, err
	}
	name, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	if err := o.fillName(shortName(name)); err != nil {
		return nil, err
	}
	return &host{
		name:   local,
		shell:  localShell,
		source: func(context.Context) (imaging.Source, error) { return localSource(o), nil },
		close:  func() error { return nil },
	}, nil
}

// shortName is the host's name without its domain; an address stays whole.
func shortName(name string) string {
	if _, err := netip.ParseAddr(name); err == nil {
		return name
	}
	short, _, _ := strings.Cut(name, ".")
	return short
}

// fillName sees to it that the image has a name.
func (o *captureFlags) fillName(fallback string) error {
	given := o.name != ""
	if !given {
		o.name = fallback
	}
	if err := imaging.CheckName(o.name); err != nil {
		if given {
			return usagef("give --name another one", "%v", err)
		}
		return usagef("name the image with --name", "the host's name cannot be the image's: %v", err)
	}
	return nil
}

func localShell(ctx context.Context, line string) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%q: %w", line, err)
	}
	return nil
}

// findAgent is the agent's binary: where the configuration says, beside this
// program, or in PATH.
func findAgent(configured string) (string, error) {
	if configured != "" {
		if _, err := os.Stat(configured); err != nil {
			return "", &hintError{fmt.Errorf("the agent: %w", err), "correct agent.path in the configuration: it names doppel-agent"}
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
