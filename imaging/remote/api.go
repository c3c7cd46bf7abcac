package remote

import (
	"context"
	"errors"

	"doppel/imaging"
)

var errUnbuilt = errors.New("not built yet")

type Conn struct{}

func Dial(ctx context.Context, target Target, o Options) (*Conn, error) { return nil, errUnbuilt }
func (c *Conn) Close() error                                          { return nil }

// Run runs a command on the head and gives what it printed.
func (c *Conn) Run(ctx context.Context, command string) ([]byte, error) { return nil, errUnbuilt }

type AgentOptions struct {
	Path   string // local doppel-agent binary
	Sudo   bool
	Prompt func(question string, echo bool) (string, error)
}

func Agent(ctx context.Context, conn *Conn, o AgentOptions) (imaging.Source, error) {
	return nil, errUnbuilt
}

func SFTP(ctx context.Context, conn *Conn) (imaging.Source, error) { return nil, errUnbuilt }
