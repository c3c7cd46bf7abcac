package wire

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"time"
)

// Silence is how long an agent waits for a sign of life before it gives up. A
// client gives one several times in that time.
const Silence = 60 * time.Second

// ErrSilent is why an agent gave up when the client was not heard of for the
// length of Silence.
var ErrSilent = errors.New("nothing was heard from the capturing end for a minute")

// ErrGone is why an agent gave up when the client's end of the stream closed.
var ErrGone = errors.New("the capturing end closed the connection")

// CutError says that the stream ended before the operation did.
type CutError struct {
	Err error // what reading or writing gave
}

func (e *CutError) Error() string { return "the agent's stream ended early: " + e.Err.Error() }
func (e *CutError) Unwrap() error { return e.Err }

// code is what an error of the other end is, as far as a caller may ask.
type code uint8

const (
	codeOther code = iota
	codeCanceled
	codeDeadline
	codeNotExist
	codePermission
	codeExist
)

var codeErrors = map[code]error{
	codeCanceled: context.Canceled, codeDeadline: context.DeadlineExceeded,
	codeNotExist: fs.ErrNotExist, codePermission: fs.ErrPermission, codeExist: fs.ErrExist,
}

// RemoteError is an error that arose at the other end. errors.Is sees through
// it for the context's errors, those of io/fs, and system call numbers.
type RemoteError struct {
	Text  string
	Errno syscall.Errno // 0: none
	code  code
}

func (e *RemoteError) Error() string { return e.Text }

func (e *RemoteError) Is(target error) bool {
	if errno, ok := target.(syscall.Errno); ok && e.Errno != 0 {
		return e.Errno == errno
	}
	return e.code != codeOther && codeErrors[e.code] == target
}

func encodeError(err error) []byte {
	c := codeOther
	for _, known := range []code{codeCanceled, codeDeadline, codeNotExist, codePermission, codeExist} {
		if errors.Is(err, codeErrors[known]) {
			c = known
			break
		}
	}
	var errno syscall.Errno
	errors.As(err, &errno)
	return putString(putUint([]byte{byte(c)}, uint64(errno)), cut(err.Error(), maxText))
}

func decodeError(p []byte) error {
	d := &decoder{b: p}
	e := &RemoteError{code: code(d.byte("code")), Errno: syscall.Errno(d.uint(4095, "errno"))}
	e.Text = d.string(maxText, "error")
	if e.code > codeExist {
		e.code = codeOther // of a later protocol
	}
	if err := d.finish(); err != nil {
		return err
	}
	return e
}
