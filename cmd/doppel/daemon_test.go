package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestDaemon runs the scripts of commands that talk to a daemon. Each has two
// network namespaces of its own, joined by a cable: $SERVER with 10.99.0.1/24
// on eth0, where doppel serves, and $CLIENT, whose eth0 has no address.
func TestDaemon(t *testing.T) {
	needRoot(t)
	bin := programs(t)
	commands := map[string]func(*testscript.TestScript, bool, []string){
		"serve": startServe, "stopserve": stopServe, "crawl": crawl,
	}
	for name, fn := range scriptCommands {
		commands[name] = fn
	}
	testscript.Run(t, testscript.Params{Dir: "testdata/daemon", Cmds: commands, Setup: func(env *testscript.Env) error {
		env.Setenv("PATH", env.Getenv("PATH")+":"+bin)
		env.Setenv("HOME", env.WorkDir)
		env.Values[serving{}] = &serving{}
		return connect(env)
	}})
}

// connect makes the two namespaces and the cable between them.
func connect(env *testscript.Env) error {
	id := strings.ToLower(rand.Text()[:8])
	for _, end := range []string{"SERVER", "CLIENT"} {
		ns := "doppel-" + strings.ToLower(end) + "-" + id
		if err := ip("netns", "add", ns); err != nil {
			return err
		}
		env.Defer(func() {
			if err := ip("netns", "del", ns); err != nil {
				panic(err)
			}
		})
		env.Setenv(end, ns)
	}
	server, client := env.Getenv("SERVER"), env.Getenv("CLIENT")
	for _, args := range [][]string{
		{"-n", server, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client},
		{"-n", server, "addr", "add", "10.99.0.1/24", "dev", "eth0"},
		{"-n", server, "link", "set", "lo", "up"},
		{"-n", server, "link", "set", "eth0", "up"},
		{"-n", client, "link", "set", "lo", "up"},
		{"-n", client, "link", "set", "eth0", "address", "52:54:00:aa:00:01", "up"},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return nil
}

func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// serving is a script's daemon.
type serving struct {
	cmd   *exec.Cmd
	ended chan error
}

// environment is the environment of a script's commands.
func environment(ts *testscript.TestScript) []string {
	env := os.Environ()
	for _, k := range []string{"WORK", "PATH", "HOME", "SERVER", "CLIENT"} {
		env = append(env, k+"="+ts.Getenv(k))
	}
	return env
}

// startServe: serve. Starts the daemon and waits until it serves. Its log is
// serve.log.
func startServe(ts *testscript.TestScript, neg bool, args []string) {
	s := ts.Value(serving{}).(*serving)
	if neg || len(args) > 0 || s.cmd != nil {
		ts.Fatalf("usage: serve, once at a time")
	}
	log, err := os.Create(ts.MkAbs("serve.log"))
	ts.Check(err)
	doppel, err := exec.LookPath("doppel")
	ts.Check(err)
	cmd := exec.Command("ip", "netns", "exec", ts.Getenv("SERVER"), doppel, "serve")
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = environment(ts), ts.MkAbs("."), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ts.Check(cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- errors.Join(cmd.Wait(), log.Close()) }()
	s.cmd, s.ended = cmd, ended
	ts.Defer(func() {
		if s.cmd == cmd {
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	for deadline := time.Now().Add(time.Minute); ; {
		b, err := os.ReadFile(log.Name())
		ts.Check(err)
		if bytes.Contains(b, []byte("msg=serving ")) {
			return
		}
		select {
		case err := <-ended:
			s.cmd = nil
			ts.Fatalf("doppel serve ended (%v): %s", err, b)
		case <-time.After(20 * time.Millisecond):
			if time.Now().After(deadline) {
				ts.Fatalf("doppel serve does not serve: %s", b)
			}
		}
	}
}

// stopServe: stopserve. Ends the daemon as systemd would, and insists on a
// clean end.
func stopServe(ts *testscript.TestScript, neg bool, args []string) {
	s := ts.Value(serving{}).(*serving)
	if s.cmd == nil {
		ts.Fatalf("nothing serves")
	}
	ts.Check(s.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-s.ended:
		s.cmd = nil
		if err != nil {
			ts.Fatalf("doppel serve ended with: %v\n%s", err, ts.ReadFile("serve.log"))
		}
	case <-time.After(30 * time.Second):
		ts.Fatalf("doppel serve does not end")
	}
}

var statusLine = regexp.MustCompile(`(?m)^STATUS (\d+) (.*)$`)

// crawl: crawl MARK…. Asks the plain door, from the client, for all that is in
// the state directory, below every prefix, and finds neither a mark nor
// anything of the keys in what it answers.
func crawl(ts *testscript.TestScript, neg bool, args []string) {
	state := ts.MkAbs("state")
	secrets := map[string][]byte{}
	for _, mark := range args {
		secrets["the mark "+mark] = []byte(mark)
	}
	paths := []string{"", "store/", "store/packs/", "store/manifests/", "store/names/", "keys/", "boot/", "v1/orders", "v1/status", "v1/enrol",
		"boot/ipxe", "boot/ipxe?mac=52:54:00:aa:00:01", "boot/undionly.kpxe", "../../etc/shadow", "store/../keys/cluster.key", "store/packs/..%2f..%2fkeys%2fcluster.key"}
	ts.Check(filepath.WalkDir(state, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(state, path)
		if err != nil {
			return err
		}
		for _, prefix := range []string{"", "store/", "boot/", "store/../", "boot/../", "boot/../../", "store/packs/../../", "%2e%2e/", "store/%2e%2e/"} {
			paths = append(paths, prefix+rel)
		}
		if strings.HasSuffix(path, ".key") {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(b)) {
				if line = strings.TrimSpace(line); len(line) >= 32 {
					secrets[rel] = []byte(line)
				}
			}
		}
		return nil
	}))
	var config strings.Builder
	for _, p := range paths {
		fmt.Fprintf(&config, "url = %q\n", "http://10.99.0.1:8480/"+p)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", ts.Getenv("CLIENT"), "curl", "-sS", "--path-as-is", "--globoff", "-w", "\nSTATUS %{http_code} %{url_effective}\n", "-K", "-")
	cmd.Stdin = strings.NewReader(config.String())
	out, err := cmd.CombinedOutput()
	if err != nil {
		ts.Fatalf("crawling: %v: %.2000s", err, out)
	}
	answers := statusLine.FindAllSubmatch(out, -1)
	found := 0
	for _, a := range answers {
		if string(a[1]) == "200" {
			found++
			ts.Logf("found %s", a[2])
		}
	}
	if len(answers) != len(paths) || found < 3 {
		ts.Fatalf("of %d questions %d were answered, %d with content", len(paths), len(answers), found)
	}
	for what, secret := range secrets {
		if bytes.Contains(out, secret) {
			ts.Fatalf("%s is to be had by plain HTTP", what)
		}
	}
}
