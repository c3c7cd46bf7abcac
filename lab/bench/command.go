package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// measured is what one command took.
type measured struct {
	seconds float64
	peak    float64 // MiB, of that process of those watched that took most
	wire    float64 // MB through the loopback interface
	output  string
}

// watched are the names of the processes whose memory is looked at.
var watched = append([]string{"doppel", "doppel-agent", "rsync"}, archiverNames...)

// run runs a shell command and measures it. What is written to it counts until
// it is on the disk that dir, if any, is on.
func (b *bench) run(ctx context.Context, script, dir string) (measured, error) {
	if dir != "" {
		script = "{ " + script + "\n} && sync -f " + quote(dir)
	}
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -o pipefail\n"+script)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	peak := watchPeak(ctx)
	before, err := loopbackBytes()
	if err != nil {
		return measured{}, err
	}
	start := time.Now()
	err = cmd.Run()
	m := measured{seconds: time.Since(start).Seconds(), output: out.String(), peak: peak()}
	after, lerr := loopbackBytes()
	if lerr != nil {
		return m, lerr
	}
	m.wire = float64(after-before) / 1e6
	if err != nil {
		return m, fmt.Errorf("%s: %w: %s", script, err, strings.TrimSpace(said.String()))
	}
	return m, nil
}

// watchPeak looks, until the function it gives is called, at how much memory
// the watched processes that begin from now on have had at most (VmHWM of
// proc_pid_status(5), which only grows, so that little is missed between two
// looks).
func watchPeak(ctx context.Context) func() float64 {
	ctx, cancel := context.WithCancel(ctx)
	before := map[string]bool{}
	for _, pid := range pids() {
		before[pid] = true
	}
	var peak int64
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, pid := range pids() {
				if !before[pid] { // hundreds of others would cost what is measured
					peak = max(peak, peakOf(pid))
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	return func() float64 {
		cancel()
		wg.Wait()
		return float64(peak) / 1024
	}
}

// pids are the processes that there are.
func pids() []string {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	return slices.DeleteFunc(names, func(name string) bool { return name[0] < '0' || name[0] > '9' })
}

// peakOf is the VmHWM of a process, in KiB, if it is one of those watched.
func peakOf(pid string) int64 {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0 // it has ended
	}
	for line := range strings.Lines(string(b)) {
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case field == "Name" && !slices.Contains(watched, value):
			return 0
		case field == "VmHWM":
			n, _ := strconv.ParseInt(strings.TrimSuffix(value, " kB"), 10, 64)
			return n
		}
	}
	return 0
}

// loopbackBytes is how much was ever sent through the loopback interface of the
// network that this runs in. (/sys/class/net is that of whoever mounted /sys.)
func loopbackBytes() (int64, error) {
	b, err := os.ReadFile("/proc/self/net/dev")
	if err != nil {
		return 0, err
	}
	return loopbackOf(string(b))
}

// loopbackOf is what a /proc/net/dev says was sent through loopback.
func loopbackOf(dev string) (int64, error) {
	for line := range strings.Lines(dev) {
		name, counters, _ := strings.Cut(line, ":")
		// Eight counters of what was received come first.
		if fields := strings.Fields(counters); strings.TrimSpace(name) == "lo" && len(fields) > 8 {
			return strconv.ParseInt(fields[8], 10, 64)
		}
	}
	return 0, errors.New("/proc/self/net/dev has no loopback interface")
}

// quote makes one word of s for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// must runs a command that is not measured.
func (b *bench) must(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -eo pipefail\n"+script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		text := strings.TrimSpace(string(out))
		return fmt.Errorf("%s: %w: %s", script, err, text[max(0, len(text)-2000):])
	}
	return nil
}
