package cluster

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// crashState tells a copy of this test that it is the one to be killed, and
// where its state is.
const crashState = "DOPPEL_TEST_CRASH_STATE"

// TestKill kills a process at any moment while it commits from several
// goroutines. Whatever it had acknowledged must be there, and the log must
// still give the state.
func TestKill(t *testing.T) {
	if path := os.Getenv(crashState); path != "" {
		commitForEver(path)
		return
	}
	path := filepath.Join(t.TempDir(), "cluster.db")
	acknowledged := map[string]bool{}
	for round := range 6 {
		for _, name := range killedAfter(t, path, time.Duration(20+rand.IntN(150))*time.Millisecond) {
			acknowledged[name] = true
		}
		c, err := Open(path, crashOptions())
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for name := range acknowledged {
			n, ok := c.Node(name)
			if !ok || n.MAC == nil {
				t.Errorf("round %d: %s was acknowledged and is %+v", round, name, n)
			}
		}
		for _, n := range c.Nodes() {
			if n.MAC == nil {
				t.Errorf("round %d: %s was added without its machine", round, n.Name)
			}
		}
		checkIndexes(t, c)
		sameState(t, c.Snapshot(), replay(t, c, crashOptions()).Snapshot())
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(acknowledged) < 12 {
		t.Errorf("only %d commits were acknowledged: the test shows nothing", len(acknowledged))
	}
}

func crashOptions() Options {
	o := testOptions()
	o.PoolFirst, o.PoolLast = netip.Addr{}, netip.Addr{}
	o.Network = netip.MustParsePrefix("10.0.0.0/8")
	o.LockTimeout = 10 * time.Second
	o.Now = time.Now
	return o
}

// killedAfter runs a process that commits, kills it, and gives the names that
// it had acknowledged.
func killedAfter(t *testing.T, path string, d time.Duration) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
	cmd.Env = append(os.Environ(), crashState+"="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var names []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if name, ok := strings.CutPrefix(lines.Text(), "done "); ok {
			if len(names) == 0 {
				time.AfterFunc(d, func() { cmd.Process.Signal(syscall.SIGKILL) })
			}
			names = append(names, name)
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the process ended by itself: %v, %v", err, names)
	}
	return names
}

// commitForEver adds nodes with their machines, and says so after each.
func commitForEver(path string) {
	c, err := Open(path, crashOptions())
	if err != nil {
		fmt.Println("opening:", err)
		os.Exit(1)
	}
	base := len(c.Nodes())
	var group sync.WaitGroup
	for worker := range 4 {
		group.Go(func() {
			for i := 0; ; i++ {
				k := base*4 + worker + 4*i
				name := fmt.Sprintf("n%d", k)
				m := MAC{2, 0, 0, byte(k >> 16), byte(k >> 8), byte(k)}
				a := netip.MustParseAddr(fmt.Sprintf("10.%d.%d.%d", 1+k>>14, k>>7&127, 1+k&127))
				err := c.Commit(context.Background(), AddNodes{Nodes: []Node{{Name: name, Addr: a}}}, Assign{MAC: m, Node: name})
				if err != nil {
					fmt.Println("committing:", err)
					os.Exit(1)
				}
				os.Stdout.WriteString("done " + name + "\n")
			}
		})
	}
	group.Wait()
}

// TestDiskFull fills the disk below a cluster.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a tmpfs: run it as root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("doppel-test", dir, "tmpfs", 0, "size=512k"); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "cluster.db")
	c := open(t, path, testOptions())
	commit(t, c, add("node001", 11), Assign{MAC: mac(1), Node: "node001"})
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast)

	failed := 0
	for i := range 200 {
		before := c.Snapshot()
		err := c.Commit(context.Background(), Note{What: "note", Text: strings.Repeat("x", 4000)})
		if err == nil {
			continue // there were free pages in the database yet
		}
		failed++
		if !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "writing the cluster's state") {
			t.Fatalf("commit %d: %v", i, err)
		}
		sameState(t, before, c.Snapshot())
	}
	if failed == 0 {
		t.Fatal("the disk was never full")
	}
	// What is on disk is what readers see.
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	commit(t, c, add("node002", 12))
	before := c.Snapshot()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, path, testOptions())
	sameState(t, before, again.Snapshot())
	sameState(t, before, replay(t, again, testOptions()).Snapshot())
}

// fill writes a file until nothing more fits.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
}
