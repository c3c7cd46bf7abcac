package snapshot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"doppel/imaging"

	"golang.org/x/sys/unix"
)

// Keeper says how to start keepers. Its Around surrounds scans of this machine's
// tree, any number at once.
type Keeper struct {
	// Command starts a program that calls Keep, with its arguments.
	Command []string
	// Env is added to the program's environment.
	Env []string
	// Needs are paths on file systems that must not be frozen, beside those that
	// every host needs: where what is captured is written to, for example.
	Needs []string
}

// Around is an imaging.Around: it has scan read what req.Consistency asks for.
func (k *Keeper) Around(ctx context.Context, live *imaging.LocalTree, req imaging.ScanRequest, sink imaging.Sink, scan func(context.Context, imaging.Tree) error) error {
	if !req.Consistency.Wanted() {
		if len(deadDirs()) > 0 {
			if err := k.sweep(ctx); err != nil {
				if err := sink.Note(ctx, imaging.Note{Path: ".", Kind: imaging.NoteLeft, Detail: err.Error()}); err != nil {
					return err
				}
			}
		}
		mounts, err := live.Mounts(ctx)
		if err == nil && mounts != nil && len(mounts.OfType("btrfs")) > 0 {
			return scan(ctx, &view{Tree: live, mounts: mounts}) // without what other keepers have there
		}
		return scan(ctx, live) // which says the same error
	}
	mounts, err := live.Mounts(ctx)
	if err != nil {
		return err
	}
	if mounts == nil {
		return errors.New("/proc is not mounted, so it cannot be told what file systems there are: capture without --snapshot and --freeze")
	}
	p, err := k.makePlan(ctx, mounts, req)
	if err != nil {
		return err
	}
	s, err := k.start(ctx, p)
	if err != nil && p.Mode == imaging.SnapshotAuto && len(p.Freeze) == 0 {
		// As in a container, whose root may not mount.
		for _, n := range []imaging.Note{{Path: ".", Kind: imaging.NoteLive, Detail: err.Error()}, {Path: ".", Kind: imaging.NoteInstant}} {
			if err := sink.Note(ctx, n); err != nil {
				return err
			}
		}
		return scan(ctx, live)
	}
	if err != nil {
		return err
	}
	return s.run(ctx, mounts, sink, scan)
}

// sweep has a keeper remove what dead ones have left.
func (k *Keeper) sweep(ctx context.Context) error {
	s, err := k.start(ctx, &plan{})
	if err != nil {
		return err
	}
	defer s.end()
	select {
	case w := <-s.last:
		if len(w.Left) > 0 {
			return fmt.Errorf("what a capture that was killed has left could not be removed: %s", strings.Join(w.Left, "; "))
		}
		if !w.Released {
			return errors.New("what a capture that was killed has left is still there: the process that was to remove it ended without a word")
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// session is a keeper that runs, as the scanning process sees it.
type session struct {
	keeper *Keeper
	plan   *plan
	cmd    *exec.Cmd
	line   *os.File
	ready  chan word // the first word
	last   chan word // the last one, and then whatever else ends it
	said   strings.Builder

	mu      sync.Mutex // of what follows
	out     *json.Encoder
	frozen  map[string]chan word
	thawed  map[string]word
	onEnd   func(error)
	asked   bool // to release everything
	reading sync.WaitGroup

	// When reading is over.
	ended, swept error
}

// GoneError says that the keeper ended before the scan did.
type GoneError struct{ Err error }

func (e *GoneError) Error() string {
	return fmt.Sprintf("the process that keeps snapshots has ended (%v): capture again", e.Err)
}

func (e *GoneError) Unwrap() error { return e.Err }

// start starts a keeper and gives it the plan.
func (k *Keeper) start(ctx context.Context, p *plan) (*session, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("start the keeper of snapshots: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "keeper"), os.NewFile(uintptr(pair[1]), "keeper")
	defer theirs.Close()
	s := &session{keeper: k, plan: p, line: ours, out: json.NewEncoder(ours),
		ready: make(chan word, 1), last: make(chan word, 1), frozen: map[string]chan word{}, thawed: map[string]word{}}
	s.cmd = exec.Command(k.Command[0], k.Command[1:]...)
	s.cmd.Args[0] = os.Args[0] // for those who look at processes
	s.cmd.Env = append(os.Environ(), k.Env...)
	s.cmd.ExtraFiles = []*os.File{theirs}
	s.cmd.Dir = "/"
	s.cmd.Stderr = &limited{b: &s.said}
	s.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS}
	if err := s.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start the keeper of snapshots, with mounts of its own: %w (it takes root, and the right to mount: capture without --snapshot and --freeze where there is none)", err), ours.Close())
	}
	s.reading.Go(s.read)
	if err := s.out.Encode(p); err != nil {
		return nil, s.gone()
	}
	return s, nil
}

// limited keeps the beginning of what a process says.
type limited struct {
	b *strings.Builder
}

func (l *limited) Write(p []byte) (int, error) {
	if room := 4096 - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// read takes what the keeper says until it ends. When it ends too early, what
// it had is released at once: somebody may be waiting for it to be thawed.
func (s *session) read() {
	defer close(s.ready)
	defer close(s.last)
	in := decoderOf(s.line)
	released := false
	for {
		var w word
		if err := in.Decode(&w); err != nil {
			s.mu.Lock()
			onEnd := s.onEnd
			s.onEnd = nil
			for _, ch := range s.frozen {
				ch <- word{Failed: "the keeper has ended"}
			}
			clear(s.frozen)
			s.mu.Unlock()
			if onEnd != nil && !released {
				onEnd(err)
			}
			s.ended = s.cmd.Wait()
			if !released && s.plan.Root != "" {
				s.swept = s.keeper.sweep(context.Background())
			}
			return
		}
		s.mu.Lock()
		switch {
		case w.Released:
			released = true
			s.last <- w
			if s.onEnd != nil && !s.asked { // somebody has told it to
				s.onEnd(errors.New("it was told to end"))
				s.onEnd = nil
			}
		case w.Frozen != "":
			if ch := s.frozen[w.Frozen]; ch != nil {
				delete(s.frozen, w.Frozen)
				ch <- w
			}
		case w.Thawed != "":
			s.thawed[w.Thawed] = w
		case w.Ready, w.Failed != "":
			released = released || !w.Ready // it has given everything back
			select {
			case s.ready <- w:
			default: // it says so only once
			}
		}
		s.mu.Unlock()
	}
}

// end waits for the keeper's process, which ends by itself.
func (s *session) end() error {
	err := s.line.Close()
	s.reading.Wait()
	return errors.Join(err, s.ended)
}

// gone says why the keeper ended.
func (s *session) gone() error {
	err := s.end()
	if err == nil {
		err = errors.New("by a signal")
	}
	if said := strings.TrimSpace(s.said.String()); said != "" {
		err = fmt.Errorf("%w: %s", err, said)
	}
	return errors.Join(&GoneError{err}, s.swept)
}

func (s *session) say(o order) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Encode(o)
}

// freeze has a part frozen.
func (s *session) freeze(ctx context.Context, path string) error {
	ch := make(chan word, 1)
	s.mu.Lock()
	s.frozen[path] = ch
	err := s.out.Encode(order{Freeze: path})
	s.mu.Unlock()
	if err != nil {
		return &GoneError{err}
	}
	select {
	case w := <-ch:
		if w.Failed != "" {
			return errors.New(w.Failed)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// thaw has a part thawed. When the keeper is gone, its end tells.
func (s *session) thaw(path string) { _ = s.say(order{Thaw: path}) }

// run scans the view and has the keeper release everything.
func (s *session) run(ctx context.Context, mounts *imaging.Mounts, sink imaging.Sink, scan func(context.Context, imaging.Tree) error) error {
	var first word
	var ok bool
	select {
	case first, ok = <-s.ready:
	case <-ctx.Done():
		// It may be at something that is not to be broken off.
		s.release()
		_ = s.end()
		return context.Cause(ctx)
	}
	if !ok {
		return s.gone()
	}
	if first.Failed != "" {
		err := errors.New(first.Failed)
		for _, left := range first.Left {
			err = fmt.Errorf("%w; and then: %s", err, left)
		}
		_ = s.end()
		return err
	}
	scanCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	s.onEnd = func(err error) { cancel(&GoneError{err}) }
	s.mu.Unlock()
	frozen, err := s.scan(scanCtx, first, mounts, sink, scan)
	s.mu.Lock()
	over := s.onEnd == nil // taken by read
	s.onEnd = nil
	s.mu.Unlock()
	if over {
		return s.gone()
	}
	w, ok := s.release()
	if !ok {
		return s.gone()
	}
	_ = s.end() // it has said all there is to say
	if w.Lost != "" {
		return fmt.Errorf("%s: nothing was captured (make room in the volume group or the thin pool, capture at a quieter time, or without --snapshot)", w.Lost)
	}
	if err != nil {
		return err
	}
	return s.conclude(ctx, w, frozen, sink)
}

// scan scans the view.
func (s *session) scan(ctx context.Context, first word, mounts *imaging.Mounts, sink imaging.Sink, scan func(context.Context, imaging.Tree) error) ([]*frozenPart, error) {
	root, err := os.Open(fmt.Sprintf("/proc/%d/root%s", s.cmd.Process.Pid, first.View))
	if err != nil {
		return nil, fmt.Errorf("open the view of the snapshots: %w", err)
	}
	defer root.Close()
	for _, n := range first.Notes {
		if err := sink.Note(ctx, n); err != nil {
			return nil, err
		}
	}
	v := &view{Tree: imaging.NewLocalTree(fmt.Sprintf("/proc/self/fd/%d", root.Fd())), mounts: mounts, stubs: first.Stubs, freeze: map[uint64]*frozenPart{}}
	var frozen []*frozenPart
	for _, l := range first.Live {
		i := slices.IndexFunc(s.plan.Freeze, func(f freeze) bool { return f.Path == l.Path })
		if i < 0 {
			return nil, fmt.Errorf("the keeper speaks of %s, which was not to be frozen", path.Join(s.plan.Root, l.Path))
		}
		f := &frozenPart{freeze: s.plan.Freeze[i], session: s}
		v.freeze[l.Dev] = f
		frozen = append(frozen, f)
	}
	if s.plan.Mode != imaging.SnapshotOff {
		if err := sink.Note(ctx, imaging.Note{Path: ".", Kind: imaging.NoteInstant}); err != nil {
			return nil, err
		}
	}
	return frozen, scan(ctx, v)
}

// release has the keeper give everything back, and waits for that whatever
// becomes of the capture. ok is false when the keeper ends without a word.
func (s *session) release() (w word, ok bool) {
	s.mu.Lock()
	s.asked = true
	err := s.out.Encode(order{Release: true})
	s.mu.Unlock()
	if err != nil {
		return w, false
	}
	w, ok = <-s.last
	return w, ok
}

// conclude makes the notes on how it went.
func (s *session) conclude(ctx context.Context, w word, frozen []*frozenPart, sink imaging.Sink) error {
	for _, left := range w.Left {
		if err := sink.Note(ctx, imaging.Note{Path: ".", Kind: imaging.NoteLeft, Detail: left + "; the next capture tries again"}); err != nil {
			return err
		}
	}
	s.mu.Lock()
	thawed := s.thawed
	s.mu.Unlock()
	for _, f := range frozen {
		t := thawed[f.Path]
		if t.Failed != "" {
			return fmt.Errorf("thaw %s: %s (fsfreeze --unfreeze %[1]s)", path.Join(s.plan.Root, f.Path), t.Failed)
		}
		if err := sink.Note(ctx, f.note(time.Duration(t.After), t.Bound)); err != nil {
			return err
		}
	}
	return nil
}
