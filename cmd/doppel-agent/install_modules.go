package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// moduleIndex is /lib/modules/RELEASE/doppel.json, which pxe writes.
type moduleIndex struct {
	Modules []struct {
		Name  string   `json:"name"`
		File  string   `json:"file"`
		Needs []string `json:"needs"`
		Wants []string `json:"wants"`
	} `json:"modules"`
	Aliases []struct {
		Pattern string `json:"pattern"`
		Module  string `json:"module"`
	} `json:"aliases"`
	Always []string `json:"always"`
}

type kernelModule struct {
	file         string
	needs, wants []string
	state        error // errNotLoaded, nil when loaded, or what its loading came to
	busy         bool
}

var errNotLoaded = errors.New("not loaded")

// moduleLoader loads the modules of the initramfs as devices ask for them.
type moduleLoader struct {
	mu      sync.Mutex
	dir     string
	modules map[string]*kernelModule
	// aliases by what comes before the first colon ("pci", "virtio"), which is
	// never a wildcard.
	aliases map[string][]moduleAlias
	always  []string
	seen    map[string]bool // modaliases that were served
	insert  func(path string) error
	say     func(format string, args ...any)
}

type moduleAlias struct{ pattern, module string }

// readModules reads the index of the running kernel.
func readModules(say func(string, ...any)) (*moduleLoader, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, fmt.Errorf("asking for the kernel's release: %w", err)
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]))
	b, err := os.ReadFile(filepath.Join(dir, "doppel.json"))
	if err != nil {
		return nil, fmt.Errorf("reading which modules there are: %w", err)
	}
	l := &moduleLoader{dir: dir, insert: finitModule, say: say}
	return l, l.read(b)
}

func (l *moduleLoader) read(b []byte) error {
	var x moduleIndex
	if err := json.Unmarshal(b, &x); err != nil {
		return fmt.Errorf("reading which modules there are: %w", err)
	}
	l.modules, l.aliases, l.seen = map[string]*kernelModule{}, map[string][]moduleAlias{}, map[string]bool{}
	for _, m := range x.Modules {
		l.modules[m.Name] = &kernelModule{file: m.File, needs: m.Needs, wants: m.Wants, state: errNotLoaded}
	}
	for _, a := range x.Aliases {
		kind, _, _ := strings.Cut(a.Pattern, ":")
		l.aliases[kind] = append(l.aliases[kind], moduleAlias{a.Pattern, a.Module})
	}
	l.always = x.Always
	return nil
}

// finitModule is finit_module(2); a module that is there already is well.
func finitModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// load loads a module and what it needs. A module of the kernel itself is not
// in the index, and is taken for loaded.
func (l *moduleLoader) load(name string) error {
	m := l.modules[name]
	if m == nil {
		return nil
	}
	if !errors.Is(m.state, errNotLoaded) || m.busy {
		return m.state
	}
	m.busy = true
	defer func() { m.busy = false }()
	for _, w := range m.wants {
		l.load(w) // crc32c_intel on a processor without the instruction
	}
	for _, n := range m.needs {
		if err := l.load(n); err != nil && !errors.Is(err, errNotLoaded) {
			m.state = fmt.Errorf("%s needs %w", name, err)
			return m.state
		}
	}
	if err := l.insert(filepath.Join(l.dir, m.file)); err != nil {
		m.state = fmt.Errorf("module %s: %w", name, err)
	} else {
		m.state = nil
	}
	return m.state
}

// loadAlways loads what no device asks for.
func (l *moduleLoader) loadAlways() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range l.always {
		if err := l.load(name); err != nil && !errors.Is(err, unix.ENODEV) {
			l.say("%v", err)
		}
	}
}

// serve loads what a device asks for by its modalias.
func (l *moduleLoader) serve(modalias string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if modalias == "" || l.seen[modalias] {
		return
	}
	l.seen[modalias] = true
	kind, _, _ := strings.Cut(modalias, ":")
	for _, a := range l.aliases[kind] {
		if !matchAlias(a.pattern, modalias) {
			continue
		}
		// ENODEV is a driver's word that the device is not one of its own.
		if err := l.load(a.module); err != nil && !errors.Is(err, unix.ENODEV) {
			l.say("%v", err)
		}
	}
}

// serveAll serves every device that the kernel shows.
func (l *moduleLoader) serveAll() error {
	return filepath.WalkDir("/sys/devices", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() != "modalias" {
			return nil // a device may go while it is looked at
		}
		if b, err := os.ReadFile(path); err == nil {
			l.serve(strings.TrimSpace(string(b)))
		}
		return nil
	})
}

// matchAlias matches a modalias as fnmatch(3) without flags does, which is how
// modprobe reads patterns: * is anything, also a slash, ? is one character,
// [a-z] one of a set.
func matchAlias(pattern, s string) bool {
	// Where the last star was, and what it stands for so far.
	star, from := -1, 0
	p, i := 0, 0
	for i < len(s) {
		if p < len(pattern) {
			if pattern[p] == '*' {
				star, from = p, i
				p++
				continue
			}
			if n, ok := matchOne(pattern[p:], s[i]); ok {
				p, i = p+n, i+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++
		p, i = star+1, from
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// matchOne matches one character and tells how much of the pattern it took.
func matchOne(pattern string, c byte) (int, bool) {
	switch pattern[0] {
	case '?':
		return 1, true
	case '\\':
		if len(pattern) > 1 {
			return 2, pattern[1] == c
		}
	case '[':
		end := strings.IndexByte(pattern[1:], ']')
		if end < 0 {
			break
		}
		set := pattern[1 : 1+end]
		not := strings.HasPrefix(set, "!") || strings.HasPrefix(set, "^")
		if not {
			set = set[1:]
		}
		return end + 2, inSet(set, c) != not
	}
	return 1, pattern[0] == c
}

func inSet(set string, c byte) bool {
	for i := 0; i < len(set); i++ {
		if i+2 < len(set) && set[i+1] == '-' {
			if set[i] <= c && c <= set[i+2] {
				return true
			}
			i += 2
		} else if set[i] == c {
			return true
		}
	}
	return false
}

// uevents listens to the kernel's announcements of devices, serves those that
// come, and remembers when the last one did.
type uevents struct {
	fd    *os.File
	last  chan struct{} // one token for each batch of events
	ended chan struct{}
}

// listenUevents must be called before serveAll, so that no device falls
// between the two.
func listenUevents(l *moduleLoader) (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listening for devices: %w", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) // a big machine announces thousands
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listening for devices: %w", err)
	}
	u := &uevents{fd: os.NewFile(uintptr(fd), "uevents"), last: make(chan struct{}, 1), ended: make(chan struct{})}
	go u.listen(l)
	return u, nil
}

func (u *uevents) listen(l *moduleLoader) {
	defer close(u.ended)
	buf := make([]byte, 64<<10)
	for {
		n, err := u.fd.Read(buf)
		if errors.Is(err, unix.ENOBUFS) {
			// Some were lost; what they announced is still to be seen.
			l.serveAll()
			continue
		}
		if err != nil {
			return
		}
		if action, modalias := parseUevent(buf[:n]); action == "add" {
			l.serve(modalias)
		}
		select {
		case u.last <- struct{}{}:
		default:
		}
	}
}

// parseUevent reads "add@/devices/…" and KEY=VALUE strings, each ending with a
// NUL.
func parseUevent(b []byte) (action, modalias string) {
	for _, f := range bytes.Split(b, []byte{0}) {
		key, value, _ := strings.Cut(string(f), "=")
		switch key {
		case "ACTION":
			action = value
		case "MODALIAS":
			modalias = value
		}
	}
	return action, modalias
}

// settle waits until no device was announced for quiet, at most for most.
func (u *uevents) settle(ctx context.Context, quiet, most time.Duration) {
	end := time.NewTimer(most)
	defer end.Stop()
	still := time.NewTimer(quiet)
	defer still.Stop()
	for {
		select {
		case <-u.last:
			still.Reset(quiet)
		case <-still.C:
			return
		case <-end.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

func (u *uevents) close() {
	u.fd.Close()
	<-u.ended
}
