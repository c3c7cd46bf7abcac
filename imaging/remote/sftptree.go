package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// sftpTree is the file system behind an SFTP subsystem, as an imaging.Tree.
// SFTP names everything by its whole path, so a directory that is renamed
// during a walk takes the walk along to wherever its old path leads; and it
// cannot open without following a symbolic link, so what is opened is looked
// at before and after.
type sftpTree struct {
	client *sftpClient
	root   string
	pace   *imaging.Pace // of reading files
}

// sftpLoses is what no attribute of SFTP version 3, the one that OpenSSH
// speaks, holds.
const sftpLoses = "SFTP carries no hard links (each name became a file of its own), holes, extended attributes (ACLs, capabilities), and no fractions of seconds in times"

func (t *sftpTree) Root(ctx context.Context) (imaging.Dir, error) {
	d := &sftpDir{tree: t, path: path.Clean("/" + t.root)}
	// The root alone may be a symbolic link, like the local one.
	info, err := t.client.Stat(d.path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", d.path, err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("open %s: it is no directory", d.path)
	}
	return d, nil
}

// Mounts reads the mount table of the SFTP server's own process.
func (t *sftpTree) Mounts(ctx context.Context) (*imaging.Mounts, error) {
	root, err := t.client.RealPath(path.Clean("/" + t.root))
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", t.root, err)
	}
	text, err := t.client.read("/proc/self/mountinfo")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, nil // sshd may confine SFTP to a directory without /proc
	}
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return imaging.ReadMounts(strings.NewReader(text), root)
}

// maxSmall bounds the files that are read whole.
const maxSmall = 1 << 20

// read reads a small file. Files of /proc say that they are empty, so this
// reads until the end, whatever they say.
func (x *sftpClient) read(name string) (string, error) {
	f, err := x.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close() // it was only read from
	b, err := io.ReadAll(io.LimitReader(struct{ io.Reader }{f}, maxSmall+1))
	if err == nil && len(b) > maxSmall {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxSmall)
	}
	return string(b), err
}

// sftpDir is a directory. What listing it told about a name answers the first
// question about that name, which saves a round trip for each.
type sftpDir struct {
	tree *sftpTree
	path string

	mu     sync.Mutex
	listed map[string]*sftp.FileStat
}

func (d *sftpDir) Close() error { return nil }

func (d *sftpDir) Names(ctx context.Context) ([]string, error) {
	d.tree.client.guard.listing.Store(0)
	infos, err := d.tree.client.ReadDirContext(ctx, d.path)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.listed = make(map[string]*sftp.FileStat, len(infos))
	names := make([]string, 0, len(infos))
	for _, info := range infos {
		name := info.Name()
		if name == "." || name == ".." {
			continue
		}
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return nil, fmt.Errorf("the host lists %q, which is no name", name)
		}
		if st, ok := info.Sys().(*sftp.FileStat); ok {
			d.listed[name] = st
		}
		names = append(names, name)
	}
	return names, nil
}

func (d *sftpDir) at(name string) string { return path.Join(d.path, name) }

func (d *sftpDir) Self(ctx context.Context) (imaging.Node, error) {
	return d.look(d.path, true)
}

func (d *sftpDir) Stat(ctx context.Context, name string) (imaging.Node, error) {
	d.mu.Lock()
	st := d.listed[name]
	delete(d.listed, name)
	d.mu.Unlock()
	if st == nil {
		return d.look(d.at(name), false)
	}
	return d.node(d.at(name), st)
}

func (d *sftpDir) look(name string, follow bool) (imaging.Node, error) {
	stat := d.tree.client.Lstat
	if follow {
		stat = d.tree.client.Stat
	}
	info, err := stat(name)
	if err != nil {
		return imaging.Node{}, err
	}
	st, ok := info.Sys().(*sftp.FileStat)
	if !ok {
		return imaging.Node{}, fmt.Errorf("the host tells nothing about %q", name)
	}
	return d.node(name, st)
}

func (d *sftpDir) node(name string, st *sftp.FileStat) (imaging.Node, error) {
	n := nodeOf(st)
	if n.Kind == imaging.Symlink {
		target, err := d.tree.client.ReadLink(name)
		if err != nil {
			return n, err
		}
		n.Target = target
	}
	return n, nil
}

// nodeOf turns SFTP's attributes into a node. There are no inode numbers, so
// none is the same file as another.
func nodeOf(st *sftp.FileStat) imaging.Node {
	n := imaging.Node{Entry: imaging.Entry{
		Mode:  st.Mode & 0o7777,
		UID:   st.UID,
		GID:   st.GID,
		MTime: imaging.Time{Sec: int64(st.Mtime)},
	}}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Kind, n.Size = imaging.Regular, int64(min(st.Size, 1<<63-1))
	case unix.S_IFDIR:
		n.Kind = imaging.Directory
	case unix.S_IFLNK:
		n.Kind = imaging.Symlink
	case unix.S_IFIFO:
		n.Kind = imaging.FIFO
	case unix.S_IFSOCK:
		n.Kind = imaging.Socket
	case unix.S_IFCHR, unix.S_IFBLK:
		n.Lost = "a device, whose numbers SFTP does not carry: it is not in the image"
	default:
		n.Lost = "SFTP does not tell what this is: it is not in the image"
	}
	return n
}

func (d *sftpDir) Dir(ctx context.Context, name string) (imaging.Dir, error) {
	info, err := d.tree.client.Lstat(d.at(name))
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%w: it is no longer a directory", fs.ErrNotExist)
	}
	if len(d.path) > maxSFTPPath {
		return nil, fmt.Errorf("the host lists directories within directories without end: %.100q…", d.path)
	}
	return &sftpDir{tree: d.tree, path: d.at(name)}, nil
}

func (d *sftpDir) Open(ctx context.Context, name string) (imaging.File, error) {
	// Opening a FIFO would hang the server: look first.
	info, err := d.tree.client.Lstat(d.at(name))
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: it is no longer a regular file", fs.ErrNotExist)
	}
	f, err := d.tree.client.Open(d.at(name))
	if err != nil {
		return nil, err
	}
	return &sftpFile{f, ctx, d.tree.pace}, nil
}

// sftpFile is an open file.
type sftpFile struct {
	*sftp.File
	ctx  context.Context // of the scan that opened it
	pace *imaging.Pace
}

func (f *sftpFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.pace.Spend(f.ctx, int64(len(b))); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

func (f *sftpFile) Stat(ctx context.Context) (imaging.Node, error) {
	info, err := f.File.Stat()
	if err != nil {
		return imaging.Node{}, err
	}
	st, ok := info.Sys().(*sftp.FileStat)
	if !ok {
		return imaging.Node{}, errors.New("the host tells nothing about an open file")
	}
	return nodeOf(st), nil
}

// Extents knows no holes.
func (f *sftpFile) Extents(context.Context, int64) ([]imaging.Extent, error) { return nil, nil }
