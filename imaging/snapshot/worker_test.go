package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/imaging"
)

// workVar says what a worker is to scan.
const workVar = "DOPPEL_SNAPSHOT_WORK"

type workSpec struct {
	Root  string
	How   imaging.Consistency
	Until string // the kind of note, or "block", at which it stops for good
}

// work is a process that scans, says one line when it has come to where it is
// to stop, and waits there for its end.
func work(ctx context.Context) error {
	var spec workSpec
	if err := json.Unmarshal([]byte(os.Getenv(workVar)), &spec); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // the end of its input is its own, as the agent's
		cancel()
	}()
	stopped := false
	stop := func(ctx context.Context) {
		if !stopped {
			stopped = true
			fmt.Println("stopped")
			<-ctx.Done()
		}
	}
	s := &sink{}
	if spec.Until == "block" {
		s.onBlock = stop
	} else {
		s.onNote = func(ctx context.Context, n imaging.Note) {
			if string(n.Kind) == spec.Until {
				stop(ctx)
			}
		}
	}
	return scan(ctx, spec.Root, spec.How, s)
}

// worker is a process that scans.
type worker struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stderr bytes.Buffer
	keeper int
}

// startWorker starts one and waits until it has come to where it stops.
func startWorker(t *testing.T, spec workSpec) *worker {
	t.Helper()
	b, err := json.Marshal(spec)
	must(t, err)
	w := &worker{cmd: exec.Command("/proc/self/exe")}
	w.cmd.Env = append(os.Environ(), roleVar+"="+workerRole, workVar+"="+string(b))
	w.cmd.Stderr = &w.stderr
	w.cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := w.cmd.StdoutPipe()
	must(t, err)
	w.stdin, err = w.cmd.StdinPipe()
	must(t, err)
	must(t, w.cmd.Start())
	t.Cleanup(func() { _ = w.cmd.Process.Kill() }) // of a test that failed
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "stopped\n" {
		t.Fatalf("the worker said %q: %v: %v\n%s", line, err, w.cmd.Wait(), w.stderr.String())
	}
	all := keepers()
	if len(all) != 1 {
		t.Fatalf("keepers: %v", all)
	}
	w.keeper = all[0]
	return w
}

// wait waits for the worker's end and gives what it said.
func (w *worker) wait(t *testing.T) string {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() { _ = w.cmd.Process.Kill() })
	defer late.Stop()
	_ = w.cmd.Wait() // killed, or with an error, which it has said
	return strings.TrimSpace(w.stderr.String())
}

func kill(t *testing.T, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		must(t, unix.Kill(pid, unix.SIGKILL))
	}
}

// awaitEnd waits until a process that is no child has ended.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	must(t, err)
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 60_000)
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			t.Fatalf("process %d does not end: %v", pid, err)
		}
		return
	}
}
