package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Addresses of a rig's switch.
var (
	rigHead   = netip.MustParsePrefix("10.77.0.1/24")
	rigServer = netip.MustParsePrefix("10.77.0.2/24")
)

// Rig is a lab with a running head and a host that doppel serves from: what
// the demo and the end-to-end tests start with.
type Rig struct {
	*Lab
	Head   *Head
	Server *Host
	Bin    string    // directory of doppel and doppel-agent
	Out    io.Writer // where commands and what they print are shown

	State, Config, Home string
	daemonLog           *Console
}

// NewRig makes a rig below parent, with the programs in bin.
func NewRig(ctx context.Context, parent, bin string, out io.Writer) (*Rig, error) {
	l, err := New(ctx, parent)
	if err != nil {
		return nil, err
	}
	r := &Rig{Lab: l, Bin: bin, Out: out,
		State: filepath.Join(l.Dir, "state"), Config: filepath.Join(l.Dir, "doppel.toml"), Home: filepath.Join(l.Dir, "home")}
	if err := r.furnish(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return r, nil
}

func (r *Rig) furnish(ctx context.Context) error {
	var err error
	r.Server, err = r.Host(ctx, "server", rigServer, map[string]netip.Addr{"head": rigHead.Addr()})
	if err != nil {
		return err
	}
	r.Head, err = r.Lab.Head(ctx, "head", rigHead, func(s string) { fmt.Fprintln(r.Out, s) })
	if err != nil {
		return err
	}
	// The administrator's home: a key that the head accepts.
	if err := os.MkdirAll(filepath.Join(r.Home, ".ssh"), 0o700); err != nil {
		return err
	}
	key, err := os.ReadFile(r.Head.Key)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(r.Home, ".ssh", "id_ed25519"), key, 0o600)
}

// Doppel is a doppel command on the server.
func (r *Rig) Doppel(ctx context.Context, args ...string) *exec.Cmd {
	cmd := r.Server.Command(ctx, filepath.Join(r.Bin, "doppel"), append([]string{"--config", r.Config, "--state", r.State}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+r.Home, "SSH_AUTH_SOCK=")
	return cmd
}

// Run shows a doppel command as a person would type it, runs it, shows what it
// prints, and returns its standard output.
func (r *Rig) Run(ctx context.Context, args ...string) (string, error) {
	fmt.Fprintf(r.Out, "$ doppel %s\n", strings.Join(args, " "))
	var stdout bytes.Buffer
	cmd := r.Doppel(ctx, args...)
	show := &indenter{w: r.Out}
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&stdout, show), show
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("doppel %s: %w", strings.Join(args, " "), err)
	}
	return stdout.String(), nil
}

// Serve starts the daemon and waits until it serves.
func (r *Rig) Serve(ctx context.Context) error {
	fmt.Fprintln(r.Out, "$ doppel serve &")
	log, err := os.OpenFile(filepath.Join(r.Dir, "serve.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	r.daemonLog = &Console{log: log}
	daemon, ended := r.Doppel(context.WithoutCancel(ctx), "serve"), make(chan struct{})
	daemon.Stdout, daemon.Stderr = r.daemonLog, r.daemonLog
	if err := daemon.Start(); err != nil {
		return errors.Join(err, log.Close())
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		defer close(ended)
		cancel(fmt.Errorf("doppel serve ended: %v", errors.Join(daemon.Wait(), log.Close())))
	}()
	r.onClose(func() error {
		// As systemd would; it may have ended by itself.
		if err := daemon.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		late := time.AfterFunc(30*time.Second, func() { _ = daemon.Process.Kill() })
		<-ended
		if !late.Stop() {
			return errors.New("doppel serve did not end when it was asked to, and was killed")
		}
		return nil
	})
	return r.daemonLog.Await(ctx, 0, regexp.MustCompile(`msg=serving`))
}

// DaemonLog is what the daemon has said.
func (r *Rig) DaemonLog() *Console { return r.daemonLog }

// SSH is an ssh command from the server to a host, as root with the
// administrator's key, trusting whatever key the host shows.
func (r *Rig) SSH(ctx context.Context, addr netip.Addr, line string) *exec.Cmd {
	return r.Server.Command(ctx, "ssh", "-i", r.Head.Key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20", "root@"+addr.String(), line)
}

// indenter sets what a command prints off from what it was. Both of a command's
// outputs may go to one.
type indenter struct {
	mu  sync.Mutex
	w   io.Writer
	mid bool
}

func (i *indenter) Write(p []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var b bytes.Buffer
	for _, c := range p {
		if !i.mid {
			b.WriteString("    ")
		}
		b.WriteByte(c)
		i.mid = c != '\n'
	}
	_, err := i.w.Write(b.Bytes())
	return len(p), err
}
