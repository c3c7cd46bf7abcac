package imaging

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const killedJob = "DOPPEL_TEST_KILLED" // state directory of a child, a colon, and the step to die at

// untilKilled does the work of a child that eachKill started, which is killed
// at one of its steps; false: this is no child.
func untilKilled(t *testing.T, work func(t *testing.T, c *Catalog, step func(string))) bool {
	t.Helper()
	state, number, child := strings.Cut(os.Getenv(killedJob), ":")
	if !child {
		return false
	}
	at, err := strconv.Atoi(number)
	must(t, err)
	c, err := OpenCatalog(state, CatalogOptions{})
	must(t, err)
	n := 0
	work(t, c, func(name string) {
		fmt.Println("step:" + name)
		if n++; n == at {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	})
	return true
}

// eachKill runs children of the test that is running, each on a copy of the
// state: one killed at each step it takes, and as many as random says, killed at
// any instant. What each leaves goes to check. It gives the steps at which
// children were killed, and how often.
func eachKill(t *testing.T, c *Catalog, random int, check func(*Catalog)) map[string]int {
	t.Helper()
	steps := map[string]int{}
	var took time.Duration
	run := func(number int, after time.Duration) (killed bool) {
		state := copyState(t, c.Dir())
		defer func() { must(t, os.RemoveAll(state.Dir())) }()
		began := time.Now()
		last, killed := killChild(t, state.Dir(), number, after)
		took = time.Since(began)
		check(state)
		if number > 0 && killed {
			steps[last]++
		}
		if t.Failed() {
			t.Fatalf("that was: killed at step %d (%q), or after %v", number, last, after)
		}
		return killed
	}
	for n := 1; run(n, 0); n++ {
	}
	for whole := took; random > 0; random-- {
		run(0, 1+rand.N(whole))
	}
	return steps
}

// killChild runs a child, and kills it after so long if it has not killed
// itself. It gives the last step that it took.
func killChild(t *testing.T, state string, step int, after time.Duration) (last string, killed bool) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d", killedJob, state, step))
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var b strings.Builder
	if after > 0 {
		// It says when it begins.
		_, err = io.CopyN(&b, out, 1)
		must(t, err)
		time.AfterFunc(after, func() { cmd.Process.Kill() })
	}
	_, err = io.Copy(&b, out)
	must(t, err)
	if err = cmd.Wait(); err != nil && !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child: %v\n%s", err, b.String())
	}
	for line := range strings.Lines(b.String()) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "step:"); ok {
			last = name
		}
	}
	return last, err != nil
}
