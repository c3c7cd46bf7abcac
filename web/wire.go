package web

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"doppel/cluster"
)

// problem is the body of an answer that is an error.
type problem struct {
	status int
	What   string `json:"error"`
	Hint   string `json:"hint,omitempty"`
}

func (p *problem) Error() string { return p.What }

func problemf(status int, hint, format string, args ...any) *problem {
	return &problem{status: status, Hint: hint, What: fmt.Sprintf(format, args...)}
}

// problemOf makes of any error one that a caller may see. A refusal is shown
// as it is; anything else may hold paths and states of this host, which are
// for the log.
func problemOf(err error, private bool) *problem {
	if p, ok := errors.AsType[*problem](err); ok {
		return p
	}
	if r, ok := errors.AsType[*cluster.RefusedError](err); ok {
		status := http.StatusConflict
		if r.Unknown {
			status = http.StatusNotFound
		}
		return problemf(status, r.Hint, "%s", r.What)
	}
	if r, ok := errors.AsType[*RequestError](err); ok {
		return problemf(http.StatusBadRequest, "", "%s", r.Error())
	}
	if private {
		return problemf(http.StatusInternalServerError, "", "%s", err)
	}
	return problemf(http.StatusInternalServerError, "see the log of doppel serve", "the server could not do it")
}

// bodyTime is how long a caller may take to send a body.
const bodyTime = 30 * time.Second

// readBody reads a request's JSON body strictly.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	return readBodyAs(w, r, limit, into, true)
}

// readBodyAs is readBody, which ignores unknown fields unless it is strict.
func readBodyAs(w http.ResponseWriter, r *http.Request, limit int64, into any, strict bool) error {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(bodyTime)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("bounding the time of a body: %w", err)
	}
	err := decode(http.MaxBytesReader(w, r.Body, limit), into, strict)
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return problemf(http.StatusRequestEntityTooLarge, "", "the body is larger than %d bytes", tooLarge.Limit)
	}
	if err != nil {
		return problemf(http.StatusBadRequest, "", "the body is not what it should be: %s", err)
	}
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("bounding the time of a body: %w", err)
	}
	return nil
}

// decode reads exactly one JSON value, with no unknown fields if it is strict.
func decode(r io.Reader, into any, strict bool) error {
	d := json.NewDecoder(r)
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(into); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("it is empty")
		}
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return tooLarge
		}
		return errors.New("more follows the value")
	}
	return nil
}

// answer writes a JSON body, or none when v is nil.
func answer(w http.ResponseWriter, status int, v any, log *slog.Logger) {
	w.Header().Set("Cache-Control", "no-store")
	if v == nil {
		w.WriteHeader(status)
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		log.Error("encoding an answer", "error", err)
		status, b = http.StatusInternalServerError, []byte(`{"error":"the answer could not be encoded"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(append(b, '\n')); err != nil {
		log.Debug("writing an answer", "error", err)
	}
}

// nothing answers what no other pattern of a mux matches.
func nothing(log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := problemf(http.StatusNotFound, "", "nothing answers %s %.200s here", r.Method, r.URL.Path)
		answer(w, p.status, p, log)
	})
}
