package remote

import (
	"log/slog"
	"time"
)

// Options say how to reach a target.
type Options struct {
	// Config is the ssh_config to read; empty: ~/.ssh/config and then
	// /etc/ssh/ssh_config; "none": no file.
	Config string
	// KnownHosts is the file of host keys; empty: ssh_config's, which is
	// ~/.ssh/known_hosts if it says nothing, and /etc/ssh/ssh_known_hosts.
	// Accepted keys are added to it.
	KnownHosts string
	// Keys are files with private keys, tried before all others.
	Keys []string
	// AcceptNew adds the key of a host that known_hosts does not know without
	// asking.
	AcceptNew bool
	// Prompt asks the user; echo is false for passwords. nil: nobody is there
	// to be asked.
	Prompt func(question string, echo bool) (string, error)
	// Log; nil: silent.
	Log *slog.Logger
	// Timeout is for reaching the host and for each answer of its while
	// logging in; 0: ssh_config's ConnectTimeout, else 20 s.
	Timeout time.Duration
	// KeepAlive is how often the peer is asked for a sign of life; it is dead
	// after three times that without one. 0: 10 s.
	KeepAlive time.Duration
	// Home is the user's home directory; empty: as the system says.
	Home string
	// AgentSocket is where the user's ssh-agent listens; empty: ssh_config's
	// IdentityAgent, else SSH_AUTH_SOCK; "none": no ssh-agent.
	AgentSocket string
}

func (o Options) log() *slog.Logger {
	if o.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Log
}
