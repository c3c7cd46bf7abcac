package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

// TestMain lets scripts run doppel as a process of its own, out of the test's
// binary. It is given the script's own configuration and state, and leaves its
// exit code for the command "code" (in another file, where CODE_OF says so).
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"doppel": func() {
			work := os.Getenv("WORK")
			code := run(append([]string{"--config", filepath.Join(work, "doppel.toml"), "--state", filepath.Join(work, "state")}, os.Args[1:]...))
			if err := os.WriteFile(filepath.Join(work, ".code"+os.Getenv("CODE_OF")), []byte(strconv.Itoa(code)), 0o666); err != nil {
				panic(err)
			}
			os.Exit(code)
		},
	})
}

// needRoot fails a test that cannot do its work as another user.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: run it with sudo, as make test does")
	}
}

// programs is a directory with doppel-agent: that of DOPPEL_BIN, or a new one.
func programs(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("DOPPEL_BIN"); dir != "" {
		return dir
	}
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-o", dir, "doppel/cmd/doppel-agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the agent: %v\n%s", err, out)
	}
	return dir
}

// TestEveryCommandHasHelp holds every command to what a stranger needs.
func TestEveryCommandHasHelp(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		path := c.CommandPath()
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: its short description is %q", path, c.Short)
		}
		for line := range strings.Lines(c.Example) {
			if !strings.HasPrefix(line, "  doppel") {
				t.Errorf("%s: example %q is not a command line", path, line)
			}
		}
		if !strings.Contains(c.Example, path+" ") && !strings.HasSuffix(c.Example, path) && !strings.Contains(c.Example, path+"\n") {
			t.Errorf("%s: its examples do not use it: %q", path, c.Example)
		}
		for _, sub := range c.Commands() {
			if !sub.Hidden {
				walk(sub)
			}
		}
	}
	walk(newRoot())
}

// TestNoCommandTakesAnything gives every command words and flags that it
// cannot want: each must say so with a hint.
func TestNoCommandTakesAnything(t *testing.T) {
	words := strings.Fields("no such words anywhere")
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Args != nil {
			if err := c.Args(c, words); err != nil && exitCode(err) != exitUsage || err != nil && hint(err) == "" {
				t.Errorf("%s refuses words with exit code %d and the hint %q: %v", c.CommandPath(), exitCode(err), hint(err), err)
			}
		}
		if err := c.FlagErrorFunc()(c, c.ParseFlags([]string{"--no-such-flag"})); exitCode(err) != exitUsage || hint(err) == "" {
			t.Errorf("%s refuses a flag with exit code %d and the hint %q: %v", c.CommandPath(), exitCode(err), hint(err), err)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
}
