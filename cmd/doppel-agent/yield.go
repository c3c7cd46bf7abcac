package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The I/O priority of ioprio_set(2): the class idle, which the disk's scheduler
// serves when nobody else has asked for a while.
const (
	ioprioWhoProcess = 1
	ioprioIdle       = 3 << 13
)

// niceLast is the last place in the queue for a CPU.
const niceLast = 19

// yield puts the head's own work before the capture's, for the CPU and for the
// disks. Behind a busy disk the capture then stands still for a while, and
// behind busy CPUs it creeps; neither breaks the connection, whose signs of
// life come from sshd and from the client. The policy SCHED_IDLE would go
// further than that: a thread that holds a lock of the kernel (on a directory,
// say) could be kept from ever giving it back, and the head's own work with it.
//
// Failing at it is no reason not to capture.
func yield() {
	// Linux keeps both by thread, and a thread takes them from the one that
	// starts it. While there is one that has not got them it may start another
	// behind our back: they all have them when a whole round finds them so.
	for range 100 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		late := 0
		for _, t := range threads {
			id, err := strconv.Atoi(t.Name())
			if err != nil || yields(id) {
				continue
			}
			late++
			unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, uintptr(id), ioprioIdle)
			if unix.Setpriority(unix.PRIO_PROCESS, id, niceLast) != nil {
				return
			}
		}
		if late == 0 {
			return
		}
	}
}

// yields tells whether the thread stands behind already; one that has ended
// does.
func yields(thread int) bool {
	// The system call gives 20 less the niceness, as it may not be negative.
	nice, err := unix.Getpriority(unix.PRIO_PROCESS, thread)
	return err != nil || nice == 20-niceLast
}
