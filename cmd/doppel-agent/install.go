package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The installer is two processes of this program. The first is PID 1: it
// mounts what a kernel needs to be talked to, starts the second, reaps whatever
// is orphaned, and starts the machine again at the end. The second does the
// work and waits for its own children only, so that neither takes the other's.
// Should the second die of a fault or of want of memory, the first is there to
// say so; a kernel whose PID 1 dies panics.

// How an installer process ends, for PID 1 to go by.
const (
	exitReboot   = 0
	exitFault    = 1
	exitPoweroff = 10
	exitStay     = 11
)

// restartAfter is how long what is on the screen stays there before a machine
// whose install failed starts again.
const restartAfter = 10 * time.Second

// errNoInstaller says that somebody called the installer on a machine of their
// own.
var errNoInstaller = errors.New("install is the first process of a machine that doppel boots from the network; " +
	"it does not run anywhere else (deploy a node instead: doppel deploy NODE)")

// runInstall is doppel-agent install.
func runInstall(ctx context.Context, args []string) error {
	if os.Getpid() == 1 {
		return runInit()
	}
	if !slices.Equal(args, []string{"--child"}) || os.Getppid() != 1 || !inInitramfs() {
		return errNoInstaller
	}
	os.Exit(workAsInstaller(ctx))
	return nil
}

// inInitramfs tells whether the root is the kernel's own first one, in memory,
// and the kernel was started by doppel. Nothing else may touch a disk.
func inInitramfs() bool {
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) != nil {
		return false
	}
	if fs.Type != unix.RAMFS_MAGIC && fs.Type != unix.TMPFS_MAGIC {
		return false
	}
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return false
	}
	_, err = parseCmdline(string(b))
	return err == nil
}

// workAsInstaller carries out the install and tells how to end.
func workAsInstaller(ctx context.Context) (code int) {
	screen := openConsoles()
	defer screen.close()
	in := &installer{screen: screen}
	defer func() {
		if v := recover(); v != nil {
			screen.say("internal fault: %v", v)
			screen.say("%s", debug.Stack())
			in.giveUp(ctx, fmt.Errorf("internal fault in the installer: %v", v))
			code = exitFault
		}
	}()
	after, err := in.run(ctx)
	if err != nil {
		screen.say("failed: %v", err)
		in.giveUp(ctx, err)
		return exitFault
	}
	switch after {
	case "poweroff":
		return exitPoweroff
	case "shell":
		screen.say("the install is done; there is no shell in the installer, so the machine stays as it is: reset it by hand")
		return exitStay
	}
	return exitReboot
}
