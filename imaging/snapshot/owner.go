package snapshot

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
)

// prefix begins the names of all that a keeper makes.
const prefix = "doppel-snapshot-"

// owner is a keeper: a process of one boot of this machine, told from a later
// one with the same id by when it started.
type owner struct {
	boot  string // the first eight hexadecimal digits of the boot's id
	pid   int
	start uint64 // in clock ticks since the boot
}

// ownName matches the names of what an owner has: its directories, and with a
// number behind them its volumes.
var ownName = regexp.MustCompile(`^doppel-snapshot-([0-9a-f]{8})-([1-9][0-9]{0,9})-([0-9]{1,19})(-[0-9]{1,5})?$`)

func (o owner) String() string { return fmt.Sprintf("%s%s-%d-%d", prefix, o.boot, o.pid, o.start) }

// volume names the n'th volume of an owner.
func (o owner) volume(n int) string { return o.String() + "-" + strconv.Itoa(n) }

// parseOwner finds out whose a name is. ok is false for a name that no keeper
// gives.
func parseOwner(name string) (o owner, ok bool) {
	m := ownName.FindStringSubmatch(name)
	if m == nil {
		return o, false
	}
	var err error
	if o.pid, err = strconv.Atoi(m[2]); err != nil {
		return o, false
	}
	if o.start, err = strconv.ParseUint(m[3], 10, 64); err != nil {
		return o, false
	}
	o.boot = m[1]
	return o, true
}

// isOwn tells whether a name is one that a keeper gives.
func isOwn(name string) bool {
	if !strings.HasPrefix(name, prefix) {
		return false
	}
	_, ok := parseOwner(name)
	return ok
}

// self is this process as an owner.
func self() (owner, error) {
	boot, err := bootID()
	if err != nil {
		return owner{}, err
	}
	start, _, err := processStart(os.Getpid())
	return owner{boot, os.Getpid(), start}, err
}

// alive tells whether the owner still runs. When it cannot be told, it does.
func (o owner) alive() bool {
	boot, err := bootID()
	if err != nil || boot != o.boot {
		return err != nil
	}
	start, ended, err := processStart(o.pid)
	if os.IsNotExist(err) {
		return false
	}
	return err != nil || start == o.start && !ended
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	if len(b) < 8 {
		return "", fmt.Errorf("the boot's id is cut short: %q", b)
	}
	return string(b[:8]), nil
}

// processStart tells when a process started, and whether it has ended and only
// waits to be reaped (proc_pid_stat(5)).
func processStart(pid int) (start uint64, ended bool, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (start uint64, ended bool, err error) {
	// The name, in parentheses, may hold anything.
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	const state, starttime = 0, 22 - 3 // they are counted from the third
	if i < 0 || len(f) <= starttime {
		return 0, false, fmt.Errorf("the state of a process is cut short: %.100q", b)
	}
	start, err = strconv.ParseUint(f[starttime], 10, 64)
	return start, f[state] == "Z" || f[state] == "X", err
}
