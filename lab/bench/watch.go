package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// idleFor is how long it is looked at what a watch costs while nothing
	// happens, and idleEvery how often a round asks meanwhile.
	idleFor   = time.Minute
	idleEvery = 5 * time.Second
)

// watched is what it costs to watch a tree of a million entries (sync's watch):
// a round when nothing has changed, and when one file has, each as the command
// that asks for it sees it, beside one rsync; the CPU time of the daemon and its
// agent together while nothing happens, and their memory. The tree is in a file
// system of its own, in which nobody else does anything.
func (b *bench) watched(ctx context.Context, state, copied string) (err error) {
	if err := b.must(ctx, b.capture(state, "")+"\nmkdir -p "+quote(copied)+"\n"+b.rsync(copied)); err != nil {
		return err
	}
	s, err := b.newServed(ctx, state, fmt.Sprintf("interval = \"%s\"\nwatch = true\nrescan_every = \"24h\"\nkeep_last = 3", max(time.Second, b.short(idleEvery))))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	// Only what begins now is looked at.
	peak := watchPeak(ctx)
	if s.daemon, err = s.rig.StartDaemon(ctx); err != nil {
		return err
	}
	// The first round looks at everything, and the watch begins with it.
	if _, err := s.doppel(ctx, "sync", "now"); err != nil {
		return err
	}
	round := func(want string, prepare func() error) func(context.Context) (measured, error) {
		return func(ctx context.Context) (m measured, err error) {
			if err := prepare(); err != nil {
				return m, err
			}
			start := time.Now()
			m.output, err = s.doppel(ctx, "sync", "now")
			m.seconds = time.Since(start).Seconds()
			if err == nil && (!strings.Contains(m.output, want) || strings.Contains(m.output, "everything was looked at")) {
				err = fmt.Errorf("a round of a tree that is watched came to: %s", m.output)
			}
			return m, err
		}
	}
	n := 0
	change := func() error {
		n++
		return os.WriteFile(b.at("data/000/0000/changed"), strconv.AppendInt(nil, int64(n), 10), 0o644)
	}
	quiet := func() error { return nil }
	own := side{name: "doppel", script: "doppel sync now, of a source that is watched"}
	peer := side{name: "rsync", title: "rsync -aHAX", script: b.rsync(copied)}
	milliseconds := func(_ side, own, peer measured) ([2]float64, error) {
		return [2]float64{1000 * own.seconds, 1000 * peer.seconds}, nil
	}
	b.say("rounds of a million entries that are watched, nothing changed")
	own.do = round("nothing had changed", quiet)
	if err := b.compare(ctx, own, []side{peer}, figure{name: "watch-quiet-time", unit: "ms", goal: goal{figure: "doppel", most: 100}, of: milliseconds}); err != nil {
		return err
	}
	if err := b.idle(ctx, s); err != nil {
		return err
	}
	// None by itself may come before the one that is measured.
	if _, err := s.doppel(ctx, "sync", "pause"); err != nil {
		return err
	}
	b.say("rounds of a million entries that are watched, one file changed")
	own.do = round("new version", change)
	if err := b.compare(ctx, own, []side{peer}, figure{name: "watch-change-time", unit: "ms", goal: atLeastAsGood, of: milliseconds}); err != nil {
		return err
	}
	b.row(Row{Name: "watch-peak-memory", Unit: "MiB", PeerName: "the goal of a process", PeerCommand: "-", Samples: [][2]float64{{peak(), 400}}}, goal{figure: "doppel", most: 400})
	return nil
}

// idle is the CPU time that the daemon and its agent take while nothing happens
// but rounds that ask.
func (b *bench) idle(ctx context.Context, s *served) error {
	b.say(fmt.Sprintf("a million entries that are watched, idle for %v", idleFor))
	before, err := s.cpu()
	if err != nil {
		return err
	}
	select {
	case <-time.After(b.short(idleFor)):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	after, err := s.cpu()
	if err != nil {
		return err
	}
	percent := 100 * (after - before).Seconds() / b.short(idleFor).Seconds()
	b.row(Row{Name: "watch-idle-cpu", Unit: "% of a core", PeerName: "the goal", PeerCommand: "-", Samples: [][2]float64{{percent, 0.1}}}, goal{figure: "doppel", most: 0.1})
	return nil
}

// short is how long something takes that is only to be seen to work.
func (b *bench) short(d time.Duration) time.Duration {
	if b.o.Small {
		return d / 30
	}
	return d
}

// cpu is the CPU time so far of the daemon, and of the agents that were started in
// its network, to the nanosecond.
func (s *served) cpu() (total time.Duration, err error) {
	var st unix.Stat_t
	if err := unix.Stat("/run/netns/"+s.host.Namespace(), &st); err != nil {
		return 0, fmt.Errorf("looking at the daemon's network: %w", err)
	}
	own := fmt.Sprintf("net:[%d]", st.Ino)
	for _, name := range pids() {
		comm, err := os.ReadFile("/proc/" + name + "/comm")
		net, lerr := os.Readlink("/proc/" + name + "/ns/net")
		pid, perr := strconv.Atoi(name)
		if err != nil || lerr != nil || perr != nil || net != own || !strings.HasPrefix(string(comm), "doppel") {
			continue // another's, or it has ended
		}
		// As clock_getcpuclockid(3) makes the id of a process's clock.
		const cpuClockSched = 2
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|cpuClockSched), &t); err != nil {
			return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
		}
		total += time.Duration(t.Nano())
	}
	return total, nil
}
