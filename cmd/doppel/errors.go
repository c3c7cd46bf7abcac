package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"doppel/cluster"
	"doppel/imaging"
	"doppel/imaging/store"
	"doppel/web"
)

// Exit codes, the same for every command.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitPartial     = 3
	exitFound       = 4
	exitInterrupted = 130
)

// usageError is a wrong command line or configuration.
type usageError struct{ what, hint string }

func (e *usageError) Error() string { return e.what }

func usagef(hint, format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...), hint}
}

// hintError is an error with its remedy.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string { return e.err.Error() }
func (e *hintError) Unwrap() error { return e.err }

// partlyError is an error after which part of the work is done and stays done.
type partlyError struct{ err error }

func (e *partlyError) Error() string { return e.err.Error() }
func (e *partlyError) Unwrap() error { return e.err }

// codeError ends a command with a code after it has said everything itself.
type codeError int

func (e codeError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// exitCode is the code an error ends the command with.
func exitCode(err error) int {
	var code codeError
	var usage *usageError
	var partly *partlyError
	var daemon *web.Error
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &partly):
		return exitPartial
	case errors.As(err, &daemon):
		return daemon.ExitCode()
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	return exitFailed
}

// hint is the remedy for an error, where one is known.
func hint(err error) string {
	var (
		usage   *usageError
		with    *hintError
		refused *cluster.RefusedError
		daemon  *web.Error
		hinted  interface{ Hint() string }
		unknown *imaging.UnknownImageError
		several *imaging.AmbiguousError
		missing *store.MissingError
		corrupt *store.CorruptError
	)
	switch {
	case errors.As(err, &usage):
		return usage.hint
	case errors.As(err, &with):
		return with.hint
	case errors.As(err, &refused):
		return refused.Hint
	case errors.As(err, &daemon):
		return daemon.Hint
	case errors.As(err, &hinted):
		return hinted.Hint()
	case errors.As(err, &unknown):
		if len(unknown.Known) == 0 {
			return "doppel capture root@head --name head makes one"
		}
		return "doppel image ls shows what there is"
	case errors.As(err, &several):
		return "give more of the digest"
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return "run it as root, or as the owner of the files that it names"
	case errors.Is(err, syscall.ENOSPC):
		return "make room on that file system (doppel image rm removes versions), then run the same command again: what is already stored is kept"
	case errors.As(err, &missing), errors.As(err, &corrupt):
		return "doppel image verify --all --read-data lists everything that is damaged; doppel image repair saves what is whole, and a new capture of the head stores the rest again"
	}
	return ""
}

// what is an error's text without the hint that goes on a line of its own.
func what(err error) string {
	var refused *cluster.RefusedError
	var daemon *web.Error
	switch {
	case errors.As(err, &refused):
		return refused.What
	case errors.As(err, &daemon):
		return daemon.What
	}
	return err.Error()
}
