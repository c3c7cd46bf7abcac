package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"doppel/clone"
)

const (
	pairFile   = "pair.json"   // what a head was told of its pair
	partedFile = "parted.json" // what it has of its own since it parted from the other head
)

// pair is what this node was last told of its pair; nil: nothing.
func (n *node) pair() (*clone.PairWord, error) {
	b, err := os.ReadFile(filepath.Join(n.dir, pairFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return clone.DecodePair(b)
}

// take remembers what this node is told of its pair. When it returns, that
// outlasts a power cut.
func (n *node) take(w clone.PairWord) error {
	known, err := n.pair()
	if err != nil {
		return err
	}
	if err := known.Take(w); err != nil {
		return err
	}
	if known == nil || *known != w {
		b, err := clone.EncodePair(w)
		if err != nil {
			return err
		}
		if err := n.keep(pairFile, b); err != nil {
			return err
		}
	}
	if w.Source {
		// What is here is what the other head follows now: nothing is this
		// head's own any more.
		return n.forget(partedFile)
	}
	return nil
}

// keep puts a file of this node's own in its place, whole and durably.
func (n *node) keep(name string, b []byte) error {
	err := renameio.WriteFile(filepath.Join(n.dir, name), b, 0o600, renameio.WithTempDir(n.dir), renameio.WithStaticPermissions(0o600))
	return errors.Join(err, syncDir(n.dir))
}

func (n *node) forget(name string) error {
	err := os.Remove(filepath.Join(n.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncDir(n.dir))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// permit refuses an update that this head must not carry out, and remembers
// what the orders say of its pair.
func (n *node) permit(o *clone.UpdateOrders) error {
	known, err := n.pair()
	if err != nil {
		return err
	}
	if err := known.Permit(o); err != nil || o.Pair == nil {
		return err
	}
	return n.take(*o.Pair)
}

// hearPair takes the direction of the pair, or only says what this node was
// told last.
func (n *node) hearPair(ctx context.Context, log *slog.Logger, o *clone.PairOrders) {
	answer := clone.PairAnswer{ID: o.ID}
	if o.Generation > 0 {
		if err := n.take(o.PairWord); err != nil {
			log.Error("the direction of the pair is not taken", "generation", o.Generation, "err", err)
			answer.Failed = err.Error()
		} else {
			log.Info("told of the direction of the pair", "image", o.Image, "generation", o.Generation, "source", o.Source)
		}
	}
	switch known, err := n.pair(); {
	case err != nil:
		answer.Failed = err.Error()
	case known != nil:
		answer.PairWord = *known
	}
	if err := n.tell(ctx, "/v1/pair", answer); err != nil && ctx.Err() == nil {
		log.Warn("the head does not hear what this node knows of its pair", "err", err)
	}
	if answer.Failed != "" && o.ID == "" {
		n.rest(ctx, updatePatience) // it would be told the same again at once
	}
}
