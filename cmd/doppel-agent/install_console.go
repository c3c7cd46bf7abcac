package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// consoles are all screens and serial lines that the kernel prints to. The
// kernel gives a process only the last of them as /dev/console, and whoever
// stands before the machine may be looking at another.
type consoles struct {
	mu    sync.Mutex
	files []*os.File
	start time.Time
}

func openConsoles() *consoles {
	c := &consoles{start: time.Now()}
	active, err := os.ReadFile("/sys/class/tty/console/active")
	if err == nil {
		for _, name := range strings.Fields(string(active)) {
			// Without O_NONBLOCK, opening a serial line that wants a carrier waits
			// for one.
			f, err := os.OpenFile(filepath.Join("/dev", name), os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
			if err == nil {
				c.files = append(c.files, f)
			}
		}
	}
	if len(c.files) == 0 {
		c.files = []*os.File{os.Stderr}
	}
	return c
}

// say prints a line on every console. A line that cannot take it within a
// second loses it: the install does not wait for a serial line that is stuck.
func (c *consoles) say(format string, args ...any) {
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	text = "doppel: " + strings.ReplaceAll(printable(text), "\n", "\r\ndoppel: ") + "\r\n"
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		f.SetWriteDeadline(time.Now().Add(time.Second)) // not every console has deadlines
		f.WriteString(text)                             // there is nobody left to tell
	}
}

func (c *consoles) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.files {
		f.Close()
	}
}

// printable keeps what came over the network from driving the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f) {
			return r
		}
		return '?'
	}, s)
}

// bytesText writes a count of bytes for people.
func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/unit, 0
	for v >= unit && i < 4 {
		v, i = v/unit, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[i])
}
