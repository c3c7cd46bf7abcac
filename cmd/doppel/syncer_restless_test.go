package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"doppel/cluster"
)

// Files that are written to without end do not keep a round from being a good
// one; status, events and the round itself say which they were.
func TestSyncOfRestlessFiles(t *testing.T) {
	ts := newTestSyncer(t, "")
	names := []string{"srv/db/ib data", "srv/log"}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for _, name := range names {
		ts.write(name, "")
		f, err := os.OpenFile(filepath.Join(ts.root, name), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(bytes.Repeat([]byte("x"), 32<<20)); err != nil {
			t.Fatal(err)
		}
		writers.Go(func() {
			defer f.Close()
			for n := int64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
					if _, err := f.WriteAt([]byte{byte(n)}, n*4099%(32<<20)); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	s := ts.round(true)
	close(stop)
	writers.Wait()
	if s.Failures != 0 || s.Good == nil || s.Good.Version != "head@1" || s.Good.Unstable != 2 {
		t.Fatalf("%+v\n%s", s.Last, ts.log.String())
	}
	want := `"srv/db/ib data", "srv/log" never held still`
	ts.shows("new version head@1", want)
	events := ts.d.cluster.Events(0, cluster.Filter{Kind: "sync"})
	if len(events) != 1 || !strings.Contains(events[0].Text, want) {
		t.Errorf("events: %+v", events)
	}
	if !strings.Contains(ts.log.String(), "srv/log") {
		t.Errorf("the log: %s", ts.log.String())
	}

	// At rest they are read again, and it is said no more.
	if s := ts.round(true); s.Good.Unstable != 0 || s.Good.Restless != "" || s.Good.Version != "head@2" {
		t.Errorf("%+v", s.Good)
	}
}

func TestSomeOf(t *testing.T) {
	if got := someOf([]string{"a", "b", "c", "d", "e", "f", "g\n"}); got != `"a", "b", "c", "d", "e" and 2 more` {
		t.Error(got)
	}
	if got := someOf(nil); got != "" {
		t.Error(got)
	}
}
