package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestImageCommands runs the scripts of commands that need neither a daemon
// nor a network.
func TestImageCommands(t *testing.T) {
	needRoot(t)
	bin := programs(t)
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Cmds: scriptCommands, Setup: func(env *testscript.Env) error {
		env.Setenv("PATH", env.Getenv("PATH")+":"+bin)
		env.Defer(func() { unmountBelow(env.WorkDir) })
		return openWork(env)
	}})
}

// unmountBelow unmounts what a script that failed has left mounted.
func unmountBelow(dir string) {
	table, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return
	}
	for _, line := range slices.Backward(strings.Split(string(table), "\n")) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			_ = unix.Unmount(f[1], unix.MNT_DETACH) // all that can be done
		}
	}
}

// openWork lets other users than root into a script's directory.
func openWork(env *testscript.Env) error {
	for dir := env.WorkDir; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// scriptCommands are what scripts may use besides testscript's own.
var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"code":  checkCode,
	"keys":  checkKeys,
	"await": awaitText,
	"flip":  flipByte,
	"field": saveField,
}

// checkCode: code N. The last doppel ended with exit code N.
func checkCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: code N")
	}
	if got := ts.ReadFile(ts.Getenv("WORK") + "/.code"); got != args[0] {
		ts.Fatalf("doppel's exit code was %s, not %s", got, args[0])
	}
}

// lastValue reads the last JSON value of standard output, and insists that
// there is nothing but JSON.
func lastValue(ts *testscript.TestScript) any {
	d := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	var v any
	for d.More() {
		v = nil
		ts.Check(d.Decode(&v))
	}
	if list, ok := v.([]any); ok && len(list) > 0 {
		return list[0]
	}
	return v
}

// checkKeys: keys K…. The last JSON object printed (of a list, the first) has
// exactly these keys.
func checkKeys(ts *testscript.TestScript, neg bool, args []string) {
	v, ok := lastValue(ts).(map[string]any)
	if !ok {
		ts.Fatalf("standard output ends with no JSON object")
	}
	got := slices.Sorted(maps.Keys(v))
	if want := slices.Sorted(slices.Values(args)); slices.Equal(got, want) == neg {
		ts.Fatalf("its keys are %q", got)
	}
}

// saveField: field KEY VAR. Keeps what the last JSON object printed has under
// the key in a variable.
func saveField(ts *testscript.TestScript, neg bool, args []string) {
	v, ok := lastValue(ts).(map[string]any)
	if !ok || neg || len(args) != 2 {
		ts.Fatalf("usage: field KEY VAR, after a command that prints a JSON object")
	}
	ts.Setenv(args[1], fmt.Sprint(v[args[0]]))
}

// awaitText: await PATTERN GLOB. Waits until a file of that name has the text;
// an empty pattern waits for the file.
func awaitText(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await PATTERN GLOB")
	}
	re, err := regexp.Compile(args[0])
	ts.Check(err)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		files, err := filepath.Glob(ts.MkAbs(args[1]))
		ts.Check(err)
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && re.Match(b) {
				return
			}
		}
	}
	ts.Fatalf("%s never came to match %q", args[1], args[0])
}

// flipByte: flip GLOB. Flips a bit in the middle of the largest of the files.
func flipByte(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: flip GLOB")
	}
	files, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	var name string
	var content []byte
	for _, f := range files {
		b, err := os.ReadFile(f)
		ts.Check(err)
		if len(b) > len(content) {
			name, content = f, b
		}
	}
	if len(content) == 0 {
		ts.Fatalf("there is no file %s", args[0])
	}
	content = bytes.Clone(content)
	content[len(content)/2] ^= 1
	ts.Check(os.Chmod(name, 0o600))
	ts.Check(os.WriteFile(name, content, 0o600))
}
