package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"doppel/clone"
	"doppel/imaging/store"
)

const (
	// renewTime bounds the download of an agent.
	renewTime = 10 * time.Minute
	// refusedFor is how long an agent that could not be used is not tried again.
	refusedFor = time.Hour
	// tryTime bounds the run of a new agent that only has to say its version.
	tryTime = time.Minute
)

// renew puts the head's agent in the place of this one, and becomes it. What it
// gives is why not: then this one goes on, and nothing has changed.
func (n *node) renew(ctx context.Context, log *slog.Logger, o *clone.AgentOrders) error {
	path := filepath.Join(n.root, "usr/lib/doppel/doppel-agent")
	if own, err := os.Readlink(n.self); err != nil || strings.TrimSuffix(own, " (deleted)") != path {
		return fmt.Errorf("the agent that runs is not %s", path)
	}
	if o.Size <= 0 || o.Size > maxAgent {
		return fmt.Errorf("an agent of %d bytes cannot be", o.Size)
	}
	if err := n.fetchAgent(ctx, path, o); err != nil {
		return err
	}
	log.Info("going on as the head's agent", "digest", o.Digest.Hex())
	if err := n.become(path); err != nil {
		return fmt.Errorf("becoming the new agent, which is in its place by now: %w", err)
	}
	return nil
}

// maxAgent bounds an agent's size.
const maxAgent = 256 << 20

// errFetch says that the head's agent did not arrive, which may be otherwise the
// next time.
var errFetch = errors.New("fetching the head's agent")

// fetchAgent fetches the agent, sees that it is the one and runs here, and puts
// it in its place.
func (n *node) fetchAgent(ctx context.Context, path string, o *clone.AgentOrders) error {
	dir := filepath.Dir(path)
	// One that was cut off has left its own.
	left, _ := filepath.Glob(filepath.Join(dir, ".doppel-agent-*"))
	for _, name := range left {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("making room for the new agent: %w", err)
		}
	}
	f, err := os.CreateTemp(dir, ".doppel-agent-*")
	if err != nil {
		return fmt.Errorf("making room for the new agent: %w", err)
	}
	defer os.Remove(f.Name()) // of no effect once it is in its place
	h := sha256.New()
	if err := n.head.get(ctx, "/v1/agent", io.MultiWriter(f, h), o.Size); err != nil {
		return errors.Join(err, f.Close())
	}
	var got store.ID
	if h.Sum(got[:0]); got != o.Digest {
		f.Close() // it is not wanted
		return fmt.Errorf("the head gave another agent than it said: its digest is %s, not %s", got.Hex(), o.Digest.Hex())
	}
	if err := errors.Join(f.Chmod(0o755), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing the new agent: %w", err)
	}
	// It is about to be all that this node can be reached by.
	try, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	if out, err := exec.CommandContext(try, f.Name(), "version").CombinedOutput(); err != nil {
		return fmt.Errorf("the new agent does not run here: %w: %.200s", err, out)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("putting the new agent in its place: %w", err)
	}
	return syncDir(dir)
}

// get fetches what is at a path, which must be so many bytes.
func (h *head) get(ctx context.Context, path string, w io.Writer, size int64) error {
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.base+path, nil)
	if err != nil {
		return err
	}
	client := *h.client
	client.Timeout = 0 // ctx has one
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", errFetch, err)
	}
	defer resp.Body.Close() // read as far as it is wanted
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: asking %s: %s", errFetch, path, resp.Status)
	}
	got, err := io.Copy(w, io.LimitReader(resp.Body, size+1))
	if err == nil && got != size {
		err = fmt.Errorf("%d bytes instead of %d", got, size)
	}
	if full, ok := errors.AsType[*fs.PathError](err); ok {
		return full // it arrived, and there is no room for it
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errFetch, err)
	}
	return nil
}
