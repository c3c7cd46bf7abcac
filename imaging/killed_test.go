package imaging

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestCaptureKilled kills captures at random instants: every version that has
// a name afterwards is whole, and the next capture goes on.
func TestCaptureKilled(t *testing.T) {
	root, state := os.Getenv("DOPPEL_TEST_ROOT"), os.Getenv("DOPPEL_TEST_STATE")
	if root != "" {
		captureForEver(t, root, state)
		return
	}
	root, state = t.TempDir(), filepath.Join(t.TempDir(), "state")
	for i := range 30 {
		fill(t, fmt.Sprintf("%s/%02d", root, i), noise(1<<20, byte(i)))
	}
	c, err := OpenCatalog(state, CatalogOptions{})
	must(t, err)
	takeImage(t, c, root, "x")
	first := readVersion(t, c, "x@1")
	random := rand.New(rand.NewPCG(1, 2))
	for range 60 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestCaptureKilled$")
		cmd.Env = append(os.Environ(), "DOPPEL_TEST_ROOT="+root, "DOPPEL_TEST_STATE="+state)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		// It says when it begins; kill it somewhere in the work that follows.
		_, err = out.Read(make([]byte, 1))
		must(t, err)
		time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond)
		must(t, cmd.Process.Kill())
		if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
			t.Fatalf("the capture was not killed: %v", err)
		}
		verifyAll(t, c)
	}
	if again := readVersion(t, c, "x@1"); len(again) != len(first) || again["07"] != first["07"] {
		t.Error("version 1 is another")
	}
	list, err := c.List(t.Context())
	must(t, err)
	r := takeImage(t, c, root, "x")
	if r.Version != list[len(list)-1].Number+1 && !r.Unchanged {
		t.Errorf("after %d versions comes %d", len(list), r.Version)
	}
	verifyAll(t, c)
	_, err = c.Sweep(t.Context())
	must(t, err)
	verifyAll(t, c)
}

// captureForEver changes a tree and captures it until it is killed.
func captureForEver(t *testing.T, root, state string) {
	c, err := OpenCatalog(state, CatalogOptions{})
	must(t, err)
	fmt.Println("capturing")
	for {
		for i := range 5 {
			fill(t, fmt.Sprintf("%s/%02d", root, i), noise(1<<20, byte(rand.IntN(256))))
		}
		fill(t, root+"/changing", []byte(time.Now().String()))
		takeImage(t, c, root, "x")
	}
}

// TestCaptureDiskFull: a store without room gives an error that says what to
// do, keeps every version, and goes on when there is room.
func TestCaptureDiskFull(t *testing.T) {
	if !inMountNamespace(t) {
		return
	}
	root, disk := t.TempDir(), t.TempDir()
	mountOn(t, "none", disk, "tmpfs", 0, "size=48m")
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	fill(t, root+"/first", noise(2<<20, 1))
	c, err := OpenCatalog(disk+"/state", CatalogOptions{})
	must(t, err)
	takeImage(t, c, root, "x")
	for i := range 80 {
		fill(t, fmt.Sprintf("%s/%02d", root, i), noise(1<<20, byte(i)))
	}
	for range 2 {
		_, err = Capture(t.Context(), c, NewLocal(root, WithClock(later)), CaptureOptions{Name: "x", Root: root})
		if err == nil || !strings.Contains(err.Error(), "doppel image rm") || !strings.Contains(err.Error(), disk) {
			t.Fatalf("on a full disk: %v", err)
		}
		verifyAll(t, c)
	}
	if files := readVersion(t, c, "x"); files["first"] != string(noise(2<<20, 1)) {
		t.Error("the version there was is another")
	}
	must(t, unix.Mount("none", disk, "", unix.MS_REMOUNT, "size=200m"))
	r := takeImage(t, c, root, "x")
	if r.Version != 2 || r.BytesSent > 60<<20 {
		t.Errorf("with room again: %+v", r)
	}
	verifyAll(t, c)
}
