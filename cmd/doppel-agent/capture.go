package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"doppel/imaging"
	"doppel/imaging/snapshot"
	"doppel/imaging/store"
	"doppel/imaging/wire"
)

// leave is how long the capture has to end by itself after its stream ended,
// before the process does. What can hold it up is a write to a pipe that nobody
// reads, or a read from a disk that hangs.
const leave = 5 * time.Second

// memoryLimit is what the garbage collector keeps the agent to, softly: a head
// in use has better things to do with its memory.
const memoryLimit = 120 << 20

// runCapture is the far end of a capture: it speaks imaging/wire on its
// standard input and output, and ends when its input does. With --unlink it
// first removes its own binary and the directory that was made for it: whatever
// happens from then on, nothing is left.
func runCapture(ctx context.Context, args []string) error {
	unlink := false
	for _, a := range args {
		if a != "--unlink" {
			return fmt.Errorf("capture: no option %q", a)
		}
		unlink = true
	}
	digest, err := ownDigest()
	if err != nil {
		return fmt.Errorf("capture: %w", err)
	}
	if unlink {
		if err := removeSelf(); err != nil {
			return fmt.Errorf("capture: remove the agent's own file: %w", err)
		}
	}
	// A client that is gone shows as an error of the write, not as a signal
	// that kills without a word.
	signal.Ignore(syscall.SIGPIPE)
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(30)
	yield()

	stdin := &input{File: os.Stdin}
	stop := context.AfterFunc(ctx, stdin.over)
	defer stop()
	err = wire.Serve(ctx, stdin, os.Stdout, localSource(), wire.Hello{Build: version(), Digest: digest})
	if errors.Is(err, context.Canceled) {
		return nil // a signal
	}
	return err
}

// localSource is this machine's tree, read from snapshots where a capture asks
// for them.
func localSource() imaging.Source {
	k := &snapshot.Keeper{Command: []string{"/proc/self/exe", "keep"}}
	return imaging.NewLocal("/", imaging.WithAround(k.Around))
}

// runKeep is the process beside a capture that has its snapshots, and gives them
// back whatever becomes of the capture.
func runKeep(_ context.Context, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("keep: no option %q", args[0])
	}
	return snapshot.Keep()
}

// input is the standard input, whose end is the end of the process, soon.
type input struct {
	*os.File
	once sync.Once
}

func (i *input) Read(b []byte) (int, error) {
	n, err := i.File.Read(b)
	if err != nil {
		i.over()
	}
	return n, err
}

// Close is what wire calls to give up. It does not interrupt a Read of a pipe
// that blocks, so it bounds that too.
func (i *input) Close() error {
	i.over()
	return i.File.Close()
}

func (i *input) over() {
	i.once.Do(func() { time.AfterFunc(leave, func() { os.Exit(1) }) })
}

// ownDigest is the digest of this program's file, as it is running.
func ownDigest() (id store.ID, err error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return id, err
	}
	defer f.Close() // it was only read from
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return id, err
	}
	h.Sum(id[:0])
	return id, nil
}

// removeSelf removes this program's file and its directory, if that is one
// that a capture made.
func removeSelf() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	dir := filepath.Dir(self)
	if !strings.HasPrefix(filepath.Base(dir), "doppel-agent.") {
		return fmt.Errorf("%s is not where a capture puts it", self)
	}
	return errors.Join(os.Remove(self), os.Remove(dir))
}
