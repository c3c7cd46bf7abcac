package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path"
	"strconv"
	"time"

	"doppel/imaging"

	"golang.org/x/sys/unix"
)

// Keep is the keeper's process: the program that Keeper.Command names calls it
// and ends with it. Its file descriptor 3 is a socket to the process that scans,
// it has a mount namespace of its own, and it leads a session, so that what ends
// others with a terminal or by a process group does not end it. SIGTERM, SIGINT
// and SIGHUP have it release everything at once.
func Keep() error {
	line := os.NewFile(3, "socket")
	if _, err := unix.GetsockoptInt(3, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return errors.New("doppel starts this itself, with a socket: it is of no use by hand")
	}
	unix.CloseOnExec(3)
	if err := apart(); err != nil {
		return err
	}
	steady()
	me, err := self()
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	h := &holder{me: me, dir: path.Join(runDir, me.String()), line: line, out: json.NewEncoder(line), partner: partnerOf()}
	return h.run(context.WithValue(context.Background(), lineKey{}, line), signals)
}

// apart has this process's mounts follow the host's, but not the other way
// round: what the host unmounts is not to stay mounted here.
func apart() error {
	mine, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if others, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", os.Getppid())); err == nil && others == mine {
		return errors.New("doppel starts this itself, with mounts of its own")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("set the keeper's mounts apart: %w", err)
	}
	return nil
}

// steady takes back what keeps the scanning process behind all others, which
// this one has from it, and tells the kernel to end others first when there is no
// memory: somebody may be waiting for a file system to be thawed.
func steady() {
	// Failing at it is no reason not to go on.
	if list, err := os.ReadDir("/proc/self/task"); err == nil {
		for _, t := range list {
			if id, err := strconv.Atoi(t.Name()); err == nil {
				_ = unix.Setpriority(unix.PRIO_PROCESS, id, 0)
				const who, none = 1, 0 // IOPRIO_WHO_PROCESS, IOPRIO_CLASS_NONE
				_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, who, uintptr(id), none)
			}
		}
	}
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
}

// partnerOf opens the process that scans, to wait for its end; -1 where the
// kernel cannot (before 5.3).
func partnerOf() int {
	fd, err := unix.PidfdOpen(os.Getppid(), 0)
	if err != nil {
		return -1
	}
	return fd
}

// partnerLeaves is how long a process that scans and has closed its socket may
// take to end. It has files of the view open until then.
const partnerLeaves = 10 * time.Second

// awaitPartner waits until the process that scans has ended.
func (h *holder) awaitPartner() {
	if h.partner < 0 {
		return
	}
	until := time.Now().Add(partnerLeaves)
	for {
		left := time.Until(until)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(h.partner), Events: unix.POLLIN}}, int(max(0, left.Milliseconds())))
		if n > 0 || err != unix.EINTR {
			return
		}
	}
}

// holder is a keeper's state. One goroutine has it.
type holder struct {
	me      owner
	dir     string
	line    *os.File
	out     *json.Encoder
	partner int

	plan    *plan
	mounts  []string // in the order they were made
	volumes []*volume
	taken   []takenVolume
	frozen  map[string]*frozenFS
}

// takenVolume is a snapshot of LVM's.
type takenVolume struct {
	vg, name string
	read     bool // it came to be mounted
}

// event is what a keeper waits for.
type event struct {
	order order
	gone  bool
}

// run takes what the plan asks for, and holds it until the process that scans
// says that it is done, or ends.
func (h *holder) run(ctx context.Context, signals <-chan os.Signal) error {
	in := decoderOf(h.line)
	h.plan = new(plan)
	if err := in.Decode(h.plan); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	if err := h.plan.check(); err != nil {
		return h.say(word{Failed: err.Error()})
	}
	if err := h.begin(); err != nil {
		return h.say(word{Failed: errors.Join(err, h.release(ctx)).Error()})
	}
	swept := h.sweep(ctx)
	if h.plan.Root == "" {
		return h.say(word{Released: true, Left: texts(errors.Join(swept, h.release(ctx)))})
	}
	ready, err := h.take(ctx)
	for _, s := range texts(swept) {
		ready.Notes = append(ready.Notes, imaging.Note{Path: ".", Kind: imaging.NoteLeft, Detail: s})
	}
	if err != nil {
		left := h.release(ctx)
		return h.say(word{Failed: err.Error(), Left: texts(left)})
	}
	events := make(chan event)
	stop := make(chan struct{})
	defer close(stop)
	go h.listen(in, events, stop)
	if err := h.say(ready); err == nil {
		h.hold(events, signals)
	}
	// The scan is over, or nobody is there any more.
	h.thawAll()
	spoiled := h.spoiled(ctx)
	left := h.release(ctx)
	return errors.Join(h.say(word{Released: true, Lost: spoiled, Left: texts(left)}), left)
}

// listen hands on what the other end says until it ends.
func (h *holder) listen(in *json.Decoder, events chan<- event, stop <-chan struct{}) {
	for {
		var e event
		e.gone = in.Decode(&e.order) != nil
		select {
		case events <- e:
		case <-stop:
			return
		}
		if e.gone {
			return
		}
	}
}

// hold freezes and thaws until the scan is over.
func (h *holder) hold(events <-chan event, signals <-chan os.Signal) {
	for {
		var bound <-chan time.Time
		next := h.nextBound()
		if next != nil {
			bound = time.After(time.Until(next.until))
		}
		select {
		case <-signals:
			return
		case <-bound:
			h.thaw(next, true)
		case e := <-events:
			switch {
			case e.gone:
				h.thawAll()
				h.awaitPartner()
				return
			case e.order.Release:
				return
			case e.order.Freeze != "":
				h.freeze(e.order.Freeze)
			case e.order.Thaw != "":
				if f := h.frozen[e.order.Thaw]; f != nil {
					h.thaw(f, false)
				}
			}
		}
	}
}

// say tells the other end. That it is not there any more is no error: then
// there is nobody to tell.
func (h *holder) say(w word) error {
	if err := h.out.Encode(w); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	return nil
}

// texts are the messages of joined errors.
func texts(err error) []string {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []string
		for _, e := range many.Unwrap() {
			out = append(out, texts(e)...)
		}
		return out
	}
	return []string{err.Error()}
}

// frozenFS is a file system to freeze.
type frozenFS struct {
	freeze
	fd     int
	dev    uint64
	frozen bool
	begun  bool // it is about to be frozen
	since  time.Time
	until  time.Time
}

// nextBound is the frozen file system whose time is over first.
func (h *holder) nextBound() *frozenFS {
	var next *frozenFS
	for _, f := range h.frozen {
		if f.frozen && (next == nil || f.until.Before(next.until)) {
			next = f
		}
	}
	return next
}

// freeze freezes a part and says so.
func (h *holder) freeze(name string) {
	f := h.frozen[name]
	if f == nil || f.frozen {
		_ = h.say(word{Frozen: name, Failed: "it is not in the plan"})
		return
	}
	fail := func(err error) {
		_ = h.say(word{Frozen: name, Failed: fmt.Sprintf("freeze %s: %v", path.Join(h.plan.Root, name), err)})
	}
	// Written down before, so that it is thawed whoever is killed when.
	f.begun = true
	defer func() { f.begun = false }()
	if err := h.record(); err != nil {
		fail(err)
		return
	}
	// To write out what is dirty can take long, and others' time may be over
	// meanwhile.
	done := make(chan error, 1)
	go func() { done <- freezeAt(f.fd) }()
	if err := h.meanwhile(done); err != nil {
		f.begun = false
		fail(errors.Join(err, h.record()))
		return
	}
	f.since = time.Now()
	f.until = f.since.Add(f.For)
	f.frozen = true
	_ = h.say(word{Frozen: name})
}

// meanwhile waits for something, and thaws what comes to its bound before.
func (h *holder) meanwhile(done <-chan error) error {
	for {
		var bound <-chan time.Time
		next := h.nextBound()
		if next != nil {
			bound = time.After(time.Until(next.until))
		}
		select {
		case err := <-done:
			return err
		case <-bound:
			h.thaw(next, true)
		}
	}
}

// thaw thaws a file system and says so. It goes on whatever happens: whoever
// writes there is waiting.
func (h *holder) thaw(f *frozenFS, bound bool) {
	if !f.frozen {
		return
	}
	err := thawAt(f.fd)
	f.frozen = false
	w := word{Thawed: f.Path, After: int64(time.Since(f.since)), Bound: bound}
	if err = errors.Join(err, h.record()); err != nil {
		w.Failed = err.Error()
	}
	_ = h.say(w)
}

func (h *holder) thawAll() {
	for _, f := range h.frozen {
		h.thaw(f, false)
	}
}

// record writes down what is frozen, or about to be.
func (h *holder) record() error {
	list := []frozenRecord{}
	for _, e := range h.frozen {
		if e.frozen || e.begun {
			list = append(list, frozenRecord{Dir: path.Join(h.plan.Root, e.Path), Dev: e.dev})
		}
	}
	return writeRecords(h.dir, list)
}
