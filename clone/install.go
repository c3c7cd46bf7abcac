package clone

import (
	"context"
	"log/slog"
)

// InstallOptions are what an install needs besides its plan.
type InstallOptions struct {
	// Work is a directory in memory: the tools go to Work/tools, the node's
	// tree is mounted at Work/target.
	Work string
	// Agent is the content of /usr/lib/doppel/doppel-agent on the node.
	Agent []byte
	// Certificate asks for the node's own credentials. It is called once,
	// when all else is in place.
	Certificate func(ctx context.Context) (Credentials, error)
	// Report takes the stages as they come; it must not block for long.
	// StageFailed and StageFinish are the caller's to send: Install returns
	// its error, or nil when all is durable and unmounted.
	Report func(Report)
	Log    *slog.Logger
}

// Credentials are what an installed node proves itself with, all PEM.
type Credentials struct {
	Certificate []byte
	Key         []byte
	CA          []byte
}

// StageError is an install's failure: where, and why.
type StageError struct {
	Stage Stage
	Err   error
}

func (e *StageError) Error() string { return string(e.Stage) + ": " + e.Err.Error() }
func (e *StageError) Unwrap() error { return e.Err }
