package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// virtual is what PID 1 mounts before anything else.
var virtual = []struct {
	fs, dir string
	flags   uintptr
	options string
}{
	{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	{"devtmpfs", "/dev", unix.MS_NOSUID, "mode=0755"},
	{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=16m"},
	{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777,size=64m"},
}

// runInit is PID 1. It does not return: the machine starts again, goes off, or
// stays.
func runInit() error {
	for _, v := range virtual {
		os.MkdirAll(v.dir, 0o755) // the mount tells what matters
		// An initramfs whose kernel mounts devtmpfs itself has it already.
		if err := unix.Mount(v.fs, v.dir, v.fs, v.flags, v.options); err != nil && !errors.Is(err, unix.EBUSY) {
			fmt.Fprintf(os.Stderr, "doppel: mounting %s on %s: %v\n", v.fs, v.dir, err)
		}
	}
	screen := openConsoles()
	code, how := runChild()
	switch {
	case code == exitPoweroff:
		screen.say("powering off")
		endMachine(screen, unix.LINUX_REBOOT_CMD_POWER_OFF)
	case code == exitStay:
		reapForever()
	case code != exitReboot:
		screen.say("the installer ended%s; this machine starts again in %v", how, restartAfter)
		time.Sleep(restartAfter)
	}
	screen.say("starting again")
	endMachine(screen, unix.LINUX_REBOOT_CMD_RESTART)
	return nil
}

// runChild starts the process that does the work and reaps until it ends.
func runChild() (code int, how string) {
	p, err := os.StartProcess("/proc/self/exe", []string{"doppel-agent", "install", "--child"},
		&os.ProcAttr{Env: []string{"PATH=/sbin:/bin", "HOME=/"}, Files: []*os.File{nil, os.Stdout, os.Stderr}})
	if err != nil {
		return exitFault, fmt.Sprintf(" before it began (%v)", err)
	}
	pid := p.Pid
	if err := p.Release(); err != nil {
		return exitFault, fmt.Sprintf(" (%v)", err)
	}
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return exitFault, fmt.Sprintf(" (%v)", err)
		case got != pid: // an orphan
		case ws.Signaled():
			// SIGKILL is how the kernel ends a process when memory runs out.
			return exitFault, fmt.Sprintf(" by a signal (%v)", ws.Signal())
		case ws.Exited():
			return ws.ExitStatus(), ""
		}
	}
}

// reapForever keeps a machine as it is. With no child left, wait4 answers at
// once, and then there is nothing to reap until the end.
func reapForever() {
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(-1, &ws, 0, nil); errors.Is(err, unix.ECHILD) {
			select {}
		}
	}
}

// endMachine ends all processes, writes out what is dirty, and has the kernel
// do the rest. It returns only when the kernel will not.
func endMachine(screen *consoles, how int) {
	unix.Kill(-1, unix.SIGKILL) // none may write while the disks are synced
	unix.Sync()
	if err := unix.Reboot(how); err != nil {
		screen.say("the kernel does not do it: %v; reset this machine by hand", err)
		reapForever()
	}
}
