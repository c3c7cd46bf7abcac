package lab

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dayKills   = 100
	dayAtOnce  = 2 // standbys that are tortured at once
	killedSeed = "DOPPEL_TEST_SEED"
)

const followConfig = `
[[sync]]
image = "head"
source = "local"
root = "SOURCE"
nodes = ["standby"]
interval = "24h"
keep_last = 3
`

// TestSyncKilled kills the daemon, the standby's agent, or both with SIGKILL at
// random instants of captures and updates, or takes the standby's power, a
// hundred times, while ever new versions come. Whenever that is, each file of
// the standby is whole and of some version, and what its boot menu starts by
// itself is there; at the end it becomes equal to the latest version.
//
// The seed that it says, in DOPPEL_TEST_SEED, makes the same choices again.
func TestSyncKilled(t *testing.T) {
	seed := time.Now().UnixNano()
	if text := os.Getenv(killedSeed); text != "" {
		var err error
		if seed, err = strconv.ParseInt(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%s=%d", killedSeed, seed)
	for i := range dayAtOnce {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			torture(newDay(t, 20*time.Minute, followConfig), rand.New(rand.NewPCG(uint64(seed), uint64(i))), dayKills/dayAtOnce)
		})
	}
}

// victims of a kill.
type victims struct {
	name          string
	daemon, agent bool
	power         bool // of the standby: what is not on its disk is lost
}

func torture(d *day, random *rand.Rand, kills int) {
	updating := regexp.MustCompile(`msg=updating`)
	// One of each, undisturbed, tells how long they take.
	generation := 2
	d.write(generation)
	began := time.Now()
	version := d.round()
	capture := time.Since(began)
	d.check(d.double.Console.Await(d.ctx, 0, updating))
	began = time.Now()
	d.becomes(version)
	update := time.Since(began)
	d.t.Logf("a capture takes %v, an update %v", capture, update)

	agentAlone := []victims{{name: "agent", agent: true}, {name: "power", agent: true, power: true}, {name: "agent", agent: true}}
	withDaemon := []victims{{name: "daemon", daemon: true}, {name: "daemon and agent", daemon: true, agent: true}, {name: "daemon and power", daemon: true, agent: true, power: true}}
	count := map[string]int{}
	for n := range kills {
		generation++
		d.write(generation)
		var v victims
		var after time.Duration
		var did string
		if random.IntN(4) == 0 {
			v, did = withDaemon[random.IntN(len(withDaemon))], "capture"
			after = time.Duration(random.Int64N(int64(capture)))
			now := d.Doppel(d.ctx, "sync", "now")
			var said bytes.Buffer
			now.Stdout, now.Stderr = &said, &said
			d.check(now.Start())
			time.Sleep(after) // the random moment
			d.kill(v)
			if err := now.Wait(); err != nil {
				count["captures cut"]++
			}
		} else {
			v, did = agentAlone[random.IntN(len(agentAlone))], "update"
			if random.IntN(5) == 0 {
				v = withDaemon[random.IntN(len(withDaemon))]
			}
			after = time.Duration(random.Int64N(int64(update)))
			from := d.double.Console.Len()
			d.round()
			d.check(d.double.Console.Await(d.ctx, from, updating))
			time.Sleep(after) // the random moment
			d.kill(v)
		}
		count[v.name+" in "+did]++
		if v.agent {
			d.onDisk(func(root string) {
				wholeTree(d.t, root)
				if _, err := os.Lstat(filepath.Join(root, "etc/doppel/node/updating")); err == nil {
					count["updates cut"]++
				}
			})
		}
		if d.t.Failed() {
			d.t.Fatalf("that was kill %d: %s, %v after a %s had begun", n+1, v.name, after, did)
		}
		if v.daemon {
			d.serve()
		}
		if v.agent {
			d.check(d.double.Start(d.ctx))
		}
	}
	d.t.Logf("%v", count)
	if count["updates cut"] < kills/8 || count["captures cut"] == 0 {
		d.t.Errorf("too few kills were in the middle of something: %v", count)
	}
	d.write(generation + 1)
	version = d.round()
	d.becomes(version)
	d.equals(version)
	d.doppel("image", "verify", "--all", "--read-data")
	if out := strings.TrimSpace(d.doppel("events", "--kind", "update-failed")); out != "" {
		d.t.Errorf("updates failed: %s", out)
	}
}

// kill kills the victims, and waits until they are gone.
func (d *day) kill(v victims) {
	d.t.Helper()
	if v.power {
		d.powerOff()
	}
	if v.agent {
		d.double.Kill()
	}
	if v.daemon {
		d.killDaemon()
	}
}

// powerOff has the standby's file system write nothing any more, from one
// instant on, without its log being flushed: what had not reached the disk by
// then is lost, as when the power fails (FS_IOC_SHUTDOWN, which xfstests uses
// for the same).
func (d *day) powerOff() {
	d.t.Helper()
	pid := d.double.first()
	// Nobody is left to see that the disk takes nothing any more.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	d.check(err)
	for _, child := range strings.Fields(string(children)) {
		agent, err := strconv.Atoi(child)
		d.check(errors.Join(err, syscall.Kill(agent, syscall.SIGSTOP)))
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root%s", pid, d.double.Mount))
	d.check(err)
	const shutdown, noLogFlush = 0x8004587d, 2
	flags := uint32(noLogFlush)
	d.check(unix.IoctlSetPointerInt(int(root.Fd()), shutdown, int(flags)))
	d.check(root.Close())
}

// awaitUnused waits until nobody has the standby's disk mounted any more, which
// the kernel tells nobody.
func (d *day) awaitUnused() {
	d.t.Helper()
	for {
		f, err := os.OpenFile(d.double.Root, os.O_RDONLY|syscall.O_EXCL, 0)
		if err == nil {
			d.check(f.Close())
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-d.ctx.Done():
			d.t.Fatalf("the standby's disk is still mounted: %v", err)
		}
	}
}
