package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"doppel/clone"
)

// The disk is not written before the head has taken the word that it will be.
func TestReporterConfirms(t *testing.T) {
	h := newTestHead(t, "127.0.0.1")
	var down, disarmed atomic.Bool
	down.Store(true)
	asked := make(chan clone.Report, 100)
	h.do = func(w http.ResponseWriter, r *http.Request) {
		var word clone.Report
		json.NewDecoder(r.Body).Decode(&word)
		switch {
		case down.Load():
			w.WriteHeader(http.StatusBadGateway)
		case disarmed.Load():
			http.Error(w, `{"error":"disarmed"}`, http.StatusForbidden)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
		asked <- word
	}
	c, err := newHead(h.URL, h.ca, time.Now, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	r := startReporter(ctx, c, "/v1/report", cancel)
	r.report(clone.Report{Stage: clone.StageTools})
	r.report(clone.Report{Stage: clone.StagePartition})
	confirmed := make(chan error, 1)
	go func() { confirmed <- r.confirm(ctx) }()
	<-asked // and not answered
	select {
	case err := <-confirmed:
		t.Fatalf("confirmed without an answer: %v", err)
	default:
	}
	down.Store(false)
	if err := <-confirmed; err != nil {
		t.Fatal(err)
	}
	var last clone.Report
	for len(asked) > 0 {
		last = <-asked
	}
	if last.Stage != clone.StagePartition {
		t.Errorf("confirmed at %q", last.Stage)
	}
	if err := r.confirm(ctx); err != nil { // nothing is left to say
		t.Error(err)
	}
	disarmed.Store(true)
	r.report(clone.Report{Stage: clone.StageFormat})
	var no *refusal
	if err := r.confirm(ctx); !errors.As(err, &no) {
		t.Errorf("got %v", err)
	}
	<-r.ended
}
