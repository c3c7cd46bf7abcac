package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"doppel/imaging"
	"doppel/imaging/remote"
)

// local is the HOST that means this machine.
const local = "local"

// host is where a capture is taken from.
type host struct {
	name   string                                       // as the user wrote it
	shell  func(ctx context.Context, line string) error // runs a command line there
	source func(context.Context) (imaging.Source, error)
	close  func() error
}

// reach connects to the host, unless it is this machine. What the user left
// open in o is filled in.
func reach(ctx context.Context, o *captureFlags, name string) (*host, error) {
	if name == local {
		return reachLocal(o)
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
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, fmt.Errorf("looking for SSH's configuration: %w", err)
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
		source: func(context.Context) (imaging.Source, error) { return imaging.NewLocal(o.root), nil },
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
