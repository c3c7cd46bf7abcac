package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
)

// command is one thing the agent does. Its error goes to standard error.
type command struct {
	name string
	run  func(ctx context.Context, args []string) error
}

// commands are all that the agent does; the first argument chooses.
var commands = [...]command{
	{"capture", runCapture},
	{"enlist", runEnlist},
	{"keep", runKeep},
	{"install", runInstall},
	{"node", runNode},
	{"version", runVersion},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "doppel-agent:", err)
		os.Exit(1)
	}
}

// run chooses the command. As process 1 it is the installer whatever its
// arguments are: the kernel gives /init those words of its command line that it
// does not know, and a UEFI loader begins that line with the kernel's own name.
func run(ctx context.Context, args []string) error {
	name, rest := "", []string(nil)
	switch {
	case os.Getpid() == 1:
		name = "install"
	case len(args) > 1:
		name, rest = args[1], args[2:]
	case len(args) == 1 && filepath.Base(args[0]) == "init":
		name = "install"
	}
	for _, c := range commands {
		if c.name == name {
			return c.run(ctx, rest)
		}
	}
	if name == "" {
		return errors.New("doppel starts this program itself; to see its version: doppel-agent version")
	}
	return fmt.Errorf("no command %q", name)
}

// runVersion prints which build this is. That it runs at all is what a capture
// asks of a place it brought the agent to.
func runVersion(context.Context, []string) error {
	_, err := fmt.Println("doppel-agent", version())
	return err
}

// version is the module's version, and the commit it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			v += " " + s.Value[:12]
		}
	}
	return v
}
