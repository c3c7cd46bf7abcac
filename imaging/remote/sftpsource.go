package remote

import (
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/pkg/sftp"

	"doppel/imaging"
)

// SFTP gives the head's tree as a source that needs nothing of the head but
// SFTP. What that cannot carry is noted: NoteLost once on the root for what
// holds for the whole tree, and on every device. It has no Layout.
func SFTP(ctx context.Context, conn *Conn) (imaging.Source, error) {
	life, end := context.WithCancel(context.Background())
	unhook := context.AfterFunc(ctx, end)
	client, err := conn.openSFTP(life)
	if !unhook() && err == nil {
		err = errors.Join(context.Cause(ctx), client.close())
	}
	if err != nil {
		end()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return &sftpSource{conn: conn, client: client, end: end}, nil
}

// sftpSource is a tree behind SFTP.
type sftpSource struct {
	conn   *Conn
	client *sftpClient
	end    context.CancelFunc
	closed bool
}

// during runs an operation that ends with ctx.
func (s *sftpSource) during(ctx context.Context, what string, op func() error) error {
	unhook := context.AfterFunc(ctx, s.end)
	defer unhook()
	err := op()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case s.conn.Err() != nil, s.ended() && s.conn.waitEnd(grace/10):
		return s.conn.lost(what)
	case errors.Is(err, sftp.ErrSSHFxConnectionLost):
		// So the library also calls an answer that makes no sense.
		if why := s.client.Wait(); why != nil && !errors.Is(why, io.EOF) && !errors.Is(why, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the SFTP server of %s makes no sense: %w", s.conn.host.alias, why)
		}
		return fmt.Errorf("SFTP on %s ended while %s: %w", s.conn.host.alias, what, err)
	case s.ended():
		return fmt.Errorf("SFTP on %s ended while %s: %w", s.conn.host.alias, what, err)
	}
	return err
}

// ended tells whether the subsystem has ended.
func (s *sftpSource) ended() bool {
	select {
	case <-s.client.session.ended:
		return true
	default:
		return false
	}
}

// Describe implements imaging.Source.
func (s *sftpSource) Describe(ctx context.Context, root string) (facts imaging.Facts, _ *imaging.Layout, err error) {
	err = s.during(ctx, "asking what it is", func() error {
		facts, err = s.facts(path.Clean("/" + root))
		return err
	})
	return facts, nil, err
}

func (s *sftpSource) facts(root string) (f imaging.Facts, err error) {
	f.LayoutNote = "SFTP does not tell how the disks are laid out"
	hostname, err := s.optional(path.Join(root, "etc/hostname"))
	if err != nil {
		return f, err
	}
	f.Hostname = strings.TrimSpace(hostname)
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		text, err := s.optional(path.Join(root, name))
		if err != nil {
			return f, err
		}
		if text != "" {
			f.OSRelease = imaging.ParseOSRelease([]byte(text))
			break
		}
	}
	if f.Arch, err = s.arch(root); err != nil {
		return f, err
	}
	if root != "/" {
		return f, nil
	}
	cmdline, err := s.optional("/proc/cmdline")
	f.Cmdline = strings.TrimSpace(cmdline)
	if err != nil || cmdline == "" {
		return f, err // without /proc there is no telling what /sys would say
	}
	f.Firmware = "bios"
	if _, err := s.client.Stat("/sys/firmware/efi"); err == nil {
		f.Firmware = "uefi"
	}
	return f, nil
}

// optional reads a small file that need not be there.
func (s *sftpSource) optional(name string) (string, error) {
	text, err := s.client.read(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return text, nil
}

// arch reads off a program for which machine the tree is.
func (s *sftpSource) arch(root string) (string, error) {
	for _, name := range []string{"usr/bin/env", "bin/sh", "usr/bin/bash", "sbin/init"} {
		f, err := s.client.Open(path.Join(root, name))
		if err != nil {
			continue // other trees have other programs
		}
		head := make([]byte, 20)
		_, err = io.ReadFull(f, head)
		f.Close() // it was only read from
		if err == nil {
			if arch := elfArch(head); arch != "" {
				return arch, nil
			}
		}
	}
	return "", s.conn.Err()
}

// elfArch reads the machine off the first 20 bytes of an ELF file, in uname's
// words.
func elfArch(head []byte) string {
	if len(head) < 20 || string(head[:4]) != elf.ELFMAG {
		return ""
	}
	var order binary.ByteOrder = binary.LittleEndian
	if elf.Data(head[elf.EI_DATA]) == elf.ELFDATA2MSB {
		order = binary.BigEndian
	}
	switch elf.Machine(order.Uint16(head[18:])) {
	case elf.EM_X86_64:
		return "x86_64"
	case elf.EM_AARCH64:
		return "aarch64"
	case elf.EM_386:
		return "i686"
	case elf.EM_PPC64:
		return "ppc64le"
	case elf.EM_RISCV:
		return "riscv64"
	case elf.EM_S390:
		return "s390x"
	}
	return ""
}

// Scan implements imaging.Source. The limit of the rate is kept for the contents
// of files, which come over the wire as they are; that of the CPU means nothing:
// sshd's sftp server works for as much as is asked of it.
func (s *sftpSource) Scan(ctx context.Context, req imaging.ScanRequest, sink imaging.Sink) error {
	if req.Consistency.Wanted() {
		return errors.New("over SFTP nothing runs on the host that could take snapshots or freeze file systems")
	}
	return s.during(ctx, "capturing", func() error {
		root := path.Clean("/" + req.Root)
		if err := s.seesAll(root); err != nil {
			return err
		}
		if err := sink.Note(ctx, imaging.Note{Path: ".", Kind: imaging.NoteLost, Detail: sftpLoses}); err != nil {
			return err
		}
		tree := &sftpTree{client: s.client, root: root}
		if req.Limits.Rate > 0 {
			tree.pace = imaging.NewPace(float64(req.Limits.Rate))
		}
		return imaging.ScanTree(ctx, tree, req, sink)
	})
}

// seesAll refuses a login that is not root's before half an image is made. SFTP
// does not tell who one is; a file that only root reads does.
func (s *sftpSource) seesAll(root string) error {
	f, err := s.client.Open(path.Join(root, "etc/shadow"))
	if err == nil {
		f.Close() // it was only opened
		return nil
	}
	if !errors.Is(err, fs.ErrPermission) {
		return nil // a tree without one: what cannot be read shows in the scan
	}
	return &remedied{
		fmt.Errorf("%w: %s@%s may not read %s, and only root can read every file", ErrNotRoot, s.conn.host.user, s.conn.host.alias, path.Join(root, "etc/shadow")),
		fmt.Sprintf("log in as root@%s: SFTP knows no sudo", s.conn.host.alias),
	}
}

// Close ends SFTP; the connection stays open.
func (s *sftpSource) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	err := s.client.close()
	s.end()
	if s.conn.Err() != nil {
		return nil // it had ended before
	}
	return err
}
