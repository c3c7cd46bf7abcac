package web

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"doppel/clone"
	"doppel/cluster"
)

// A node that takes a task which is answered at once, and is gone then, is not
// waited for without end; one that compares itself may take its time.
func TestTakenAndGone(t *testing.T) {
	b := newBench(t)
	b.certified("node001", 11)
	for name, ask := range map[string]func(context.Context, *Machines) error{
		"capture": func(ctx context.Context, m *Machines) error {
			_, err := m.OpenCapture(ctx, "node001", true)
			return err
		},
		"pair": func(ctx context.Context, m *Machines) error {
			_, err := m.AskPair(ctx, "node001", clone.PairWord{})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &Machines{Cluster: b.cluster}
				got := make(chan error, 1)
				begun := time.Now()
				go func() { got <- ask(t.Context(), m) }()
				synctest.Wait()
				if task, _ := m.questions.next("node001"); task == nil {
					t.Fatal("there is no task")
				}
				no, ok := errors.AsType[*cluster.RefusedError](<-got)
				if !ok || !strings.Contains(no.What, "node001 took the task, and has not answered") || no.Hint == "" || time.Since(begun) != 2*pickupTime {
					t.Errorf("after %s: %v", time.Since(begun), no)
				}
				if task, _ := m.questions.next("node001"); task != nil {
					t.Error("it is given the task though nobody waits for its answer any more")
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		var q questions
		got := make(chan any, 1)
		go func() { a, _ := q.ask(t.Context(), "node001", "D", clone.Task{}); got <- a }()
		synctest.Wait()
		q.next("node001")
		time.Sleep(time.Hour)
		q.answered("node001", "D", "at last")
		if a := <-got; a != "at last" {
			t.Errorf("%v", a)
		}
	})
}

// A stream that comes as somebody gives up waiting is not lost with its connection.
func TestAnsweredAtTheEnd(t *testing.T) {
	for range 100 {
		synctest.Test(t, func(t *testing.T) {
			var q questions
			c, far := net.Pipe()
			defer far.Close()
			type result struct {
				answer any
				err    error
			}
			got := make(chan result, 1)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				a, err := q.askBriefly(ctx, "node001", "C", clone.Task{})
				got <- result{a, err}
			}()
			synctest.Wait()
			q.next("node001")
			cancel()
			taken := q.answered("node001", "C", c)
			if r := <-got; taken != (r.answer == c) {
				t.Errorf("it was taken: %v; %v, %v", taken, r.answer, r.err)
			}
			c.Close()
		})
	}
}
