package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// isolated is set in the environment of a program that Isolate has started.
const isolated = "DOPPEL_LAB_ISOLATED"

// Isolate gives a program (a test binary, from its TestMain) a network of its
// own, with nothing but loopback in it: it runs the program again, with the
// same arguments, in a network namespace that ends with it, and tells its exit
// code. In the program that runs there, done is false: it goes on. So does one
// that is not root's, in the network it has: what it does without privileges
// needs no other.
func Isolate() (code int, done bool) {
	if os.Geteuid() != 0 {
		return 0, false
	}
	if os.Getenv(isolated) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "ip link set lo up: %v\n%s", err, out)
			return 1, true
		}
		return 0, false
	}
	runtime.LockOSThread() // Pdeathsig goes by thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), true
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a network:", err)
		return 1, true
	}
	return 0, true
}
