package imaging

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"doppel/imaging/store"
)

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		p := NewPace(1000)
		spend := func(n int64, want time.Duration) {
			t.Helper()
			must(t, p.Spend(t.Context(), n))
			if at := time.Since(start); at != want {
				t.Errorf("%d were spent at %v, not %v", n, at, want)
			}
		}
		spend(100, 0) // ahead
		spend(500, 500*time.Millisecond)
		spend(0, 500*time.Millisecond)
		spend(4000, 4500*time.Millisecond)
		time.Sleep(time.Minute) // a pause is not caught up with
		start = time.Now()
		spend(100, 0)
		spend(1000, time.Second)

		// Any number of spenders have one rate together.
		start = time.Now()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { p.Spend(t.Context(), 1000) })
		}
		all.Wait()
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("ten spenders took %v", took)
		}

		why := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(why) })
		start = time.Now()
		if err := p.Spend(ctx, 1<<40); !errors.Is(err, why) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		must(t, (*Pace)(nil).Spend(t.Context(), 1<<60))
	})
}

func TestCPUPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var used time.Duration
		c := &cpuPace{pace: NewPace(0.25 * 1e9), used: func() time.Duration { return used }}
		start := time.Now()
		for range 100 { // works for 10 ms, on one core
			time.Sleep(10 * time.Millisecond)
			used += 10 * time.Millisecond
			must(t, c.rest(t.Context()))
			if wall := time.Since(start); used > wall/4+paceAhead/4+10*time.Millisecond {
				t.Fatalf("%v used within %v", used, wall)
			}
		}
		if wall := time.Since(start); wall > 4*time.Second {
			t.Errorf("a quarter of a core needs %v for %v", wall, used)
		}
	})
}

// A scan of this machine gives its sink no more bytes a second than it may.
func TestScanKeepsToItsRate(t *testing.T) {
	root := t.TempDir()
	for i := range 3 {
		must(t, os.WriteFile(filepath.Join(root, fmt.Sprint(i)), noise(3<<20, byte(i+1)), 0o644))
	}
	const rate = 6 << 20
	start := time.Now()
	sink := &timed{collected: collected{chunks: make(map[store.Ref][]byte)}, block: func(sum int64) {
		if most := rate * (time.Since(start) + paceAhead).Seconds(); float64(sum) > most {
			t.Errorf("%d bytes within %v", sum, time.Since(start))
		}
	}}
	src := NewLocal(root)
	must(t, src.Scan(t.Context(), ScanRequest{Limits: Limits{Rate: rate, CPU: 300}}, sink))
	if sink.sum < 9<<20 || len(sink.entries) != 4 {
		t.Errorf("%d bytes, %d entries", sink.sum, len(sink.entries))
	}
}

// timed tells how many bytes have come whenever some do.
type timed struct {
	collected
	sum   int64
	block func(sum int64)
}

func (s *timed) Block(ctx context.Context, b store.Block) error {
	s.sum += int64(len(b.Data))
	s.block(s.sum)
	return s.collected.Block(ctx, b)
}
