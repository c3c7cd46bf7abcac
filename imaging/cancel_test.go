package imaging

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"doppel/imaging/store"
)

// A scan may be broken off while readers are at work: they end, and nothing is
// taken from under their hands.
func TestBrokenOffWhileReading(t *testing.T) {
	root := t.TempDir()
	for i := range 2000 {
		must(t, os.MkdirAll(filepath.Join(root, fmt.Sprint(i%50)), 0o755))
		must(t, os.WriteFile(filepath.Join(root, fmt.Sprint(i%50), fmt.Sprint(i)), []byte(fmt.Sprint(i)), 0o644))
	}
	why := errors.New("broken off")
	for n := range 100 {
		ctx, cancel := context.WithCancelCause(t.Context())
		tree := &countingTree{Tree: NewLocalTree(root), at: n * 20, reached: func() { cancel(why) }}
		err := ScanTree(ctx, tree, ScanRequest{}, &collected{chunks: make(map[store.Ref][]byte)})
		if !errors.Is(err, why) {
			t.Fatalf("after %d files: %v", n*20, err)
		}
	}
}

// countingTree tells when its at-th file is opened.
type countingTree struct {
	Tree
	at      int
	reached func()
	opened  atomic.Int64
}

type countingDir struct {
	directory
	tree *countingTree
}

func (c *countingTree) Root(ctx context.Context) (Dir, error) {
	d, err := c.Tree.Root(ctx)
	return &countingDir{d, c}, err
}

func (d *countingDir) Dir(ctx context.Context, name string) (Dir, error) {
	sub, err := d.directory.Dir(ctx, name)
	if err != nil {
		return nil, err
	}
	return &countingDir{sub, d.tree}, nil
}

func (d *countingDir) Open(ctx context.Context, name string) (File, error) {
	if d.tree.opened.Add(1) == int64(d.tree.at)+1 {
		d.tree.reached()
	}
	return d.directory.Open(ctx, name)
}
