package bench

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"doppel/lab"
)

// startSSHD starts an sshd on the loopback interface that lets root in with a
// key of the bench's own.
func (b *bench) startSSHD(ctx context.Context) error {
	dir := filepath.Join(b.work, "ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	b.port = l.Addr().(*net.TCPAddr).Port
	l.Close()
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		return err
	}
	err = b.must(ctx, fmt.Sprintf(`cd %s
rm -f host* id* known
ssh-keygen -q -t ed25519 -N '' -f host
ssh-keygen -q -t ed25519 -N '' -f id
echo "[127.0.0.1]:%d $(cat host.pub)" >known
cat >sshd_config <<C
ListenAddress 127.0.0.1
Port %d
HostKey $PWD/host
AuthorizedKeysFile $PWD/id.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
UseDNS no
C
cat >ssh_config <<C
Host head
  HostName 127.0.0.1
  Port %d
  User root
  IdentityFile $PWD/id
  IdentitiesOnly yes
  UserKnownHostsFile $PWD/known
  LogLevel ERROR
  Compression no
C`, quote(dir), b.port, b.port, b.port))
	if err != nil {
		return err
	}
	sshd, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		return fmt.Errorf("openssh-server is not installed: %w", err)
	}
	cmd := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	if err := b.runSSHD(cmd, "sshd.log"); err != nil {
		return err
	}
	return b.awaitSSHD(ctx)
}

// serveSSH starts the same sshd in the network of a host, too, and waits until it
// listens there.
func (b *bench) serveSSH(ctx context.Context, h *lab.Host) error {
	cmd := exec.Command("nsenter", "--net=/run/netns/"+h.Namespace(), "/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(b.work, "ssh", "sshd_config"))
	if err := b.runSSHD(cmd, "sshd.sync.log"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := h.Command(ctx, "bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d", b.port)).Run()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("sshd does not listen: %w; see %s", err, filepath.Join(b.work, "ssh", "sshd.sync.log"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// runSSHD runs an sshd until the bench ends.
func (b *bench) runSSHD(cmd *exec.Cmd, said string) error {
	log, err := os.Create(filepath.Join(b.work, "ssh", said))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return err
	}
	b.cleanup = append(b.cleanup, func() error {
		err := cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it ends by the signal
		return err
	})
	return nil
}

// awaitSSHD waits until sshd lets root in.
func (b *bench) awaitSSHD(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", b.port))
		if err == nil {
			c.Close()
			return b.must(ctx, b.ssh()+" head true")
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("sshd does not listen: %w; see %s", err, filepath.Join(b.work, "ssh", "sshd.log"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ssh is the command that reaches the head, less its name.
func (b *bench) ssh() string { return "ssh -F " + quote(filepath.Join(b.work, "ssh", "ssh_config")) }

// capture is the doppel command that captures the head's tree into a state
// directory.
func (b *bench) capture(state, options string) string {
	ssh := filepath.Join(b.work, "ssh")
	return fmt.Sprintf("HOME=%s SSH_AUTH_SOCK= %s --config /nonexistent --state %s capture root@127.0.0.1:%d --identity %s --known-hosts %s --name head --root %s --json %s",
		quote(ssh), quote(b.doppel), quote(state), b.port, quote(filepath.Join(ssh, "id")), quote(filepath.Join(ssh, "known")), quote(b.tree), options)
}

// command is any other doppel command.
func (b *bench) command(state, args string) string {
	return fmt.Sprintf("%s --config /nonexistent --state %s %s", quote(b.doppel), quote(state), args)
}
