package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"doppel/lab"
)

// inDatabase runs a command in a Debian tree with MariaDB, with a directory in
// the place of its data.
const inDatabase = `#!/bin/sh -eu
# inDatabase TREE DATA COMMAND…
if [ "${INNER:-}" = "" ]; then INNER=1 exec unshare --mount --propagation private "$0" "$@"; fi
tree=$1; data=$2; shift 2
mount --bind "$data" "$tree/var/lib/mysql"
mount -t tmpfs tmpfs "$tree/run"
mount -t tmpfs tmpfs "$tree/tmp"
mount --bind /dev "$tree/dev"
mount -t proc proc "$tree/proc"
mkdir -p "$tree/run/mysqld"
exec chroot "$tree" "$@"
`

// database is a place to run MariaDB in.
type database struct {
	t            *testing.T
	script, tree string
}

// command is one of MariaDB's, for the data in a directory.
func (d *database) command(data string, args ...string) *exec.Cmd {
	cmd := exec.Command(d.script, append([]string{d.tree, data}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	return cmd
}

const dbSocket = "--socket=/var/lib/mysql/socket"

// create makes an empty database in a directory.
func (d *database) create(data string) {
	d.t.Helper()
	if err := os.MkdirAll(data, 0o755); err != nil {
		d.t.Fatal(err)
	}
	if out, err := d.command(data, "mariadb-install-db", "--force", "--user=root", "--datadir=/var/lib/mysql", "--auth-root-authentication-method=normal", "--skip-test-db").CombinedOutput(); err != nil {
		d.t.Fatalf("%v\n%s", err, out)
	}
}

// serve runs mariadbd until the function that it gives is called.
func (d *database) serve(data string) (stop func()) {
	d.t.Helper()
	cmd := d.command(data, "mariadbd", "--no-defaults", "--user=root", "--datadir=/var/lib/mysql", dbSocket, "--skip-networking", "--pid-file=/run/pid",
		"--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	var said strings.Builder
	ready, ended := make(chan bool, 1), make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "ready for connections") {
				ready <- true
			}
		}
		close(ready)
	}()
	late := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	ok := <-ready
	late.Stop()
	stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(unix.SIGTERM) // it may have ended
		late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		<-ended
		_ = cmd.Wait()
		late.Stop()
	})
	d.t.Cleanup(stop)
	if !ok {
		stop()
		d.t.Fatalf("mariadbd did not start:\n%s", said.String())
	}
	return stop
}

func (d *database) query(data, sql string) string {
	d.t.Helper()
	out, err := d.command(data, "mariadb", "--no-defaults", dbSocket, "--batch", "--skip-column-names", "--execute", sql).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s: %v\n%s", sql, err, out)
	}
	return strings.TrimSpace(string(out))
}

const rowText = "concat('row ', id, repeat(' of many', 40))"

// enoughRows are something to lose.
const enoughRows = 200

// insert inserts one row after the other, each committed by itself, and counts
// those that were acknowledged; enough is closed when they are enoughRows.
func (d *database) insert(data string, acknowledged *atomic.Int64, enough chan<- struct{}) (stop func()) {
	d.t.Helper()
	cmd := d.command(data, "mariadb", "--no-defaults", dbSocket, "--batch", "--skip-column-names", "--unbuffered")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	done := make(chan struct{})
	var stopping atomic.Bool
	go func() {
		defer close(done)
		defer stdin.Close()
		answers := bufio.NewReader(stdout)
		for n := acknowledged.Load() + 1; !stopping.Load(); n++ {
			if _, err := fmt.Fprintf(stdin, "set @id=%d; insert into test.data select id, %s from (select @id as id) as x; select @id;\n", n, rowText); err != nil {
				d.t.Errorf("row %d: %v", n, err)
				return
			}
			line, err := answers.ReadString('\n')
			if err != nil || strings.TrimSpace(line) != strconv.FormatInt(n, 10) {
				d.t.Errorf("row %d: the answer was %q, %v", n, line, err)
				return
			}
			acknowledged.Store(n)
			if n == enoughRows {
				close(enough)
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		stopping.Store(true)
		<-done
		_, _ = io.Copy(io.Discard, stdout)
		if err := cmd.Wait(); err != nil {
			d.t.Error(err)
		}
	})
	d.t.Cleanup(stop)
	return stop
}

// TestMariaDB captures a head whose MariaDB is written to all the time, by both
// of README's recipes, restores it elsewhere, and starts a second MariaDB there:
// it has every row that was acknowledged before the capture began, whole, and
// none is missing in between.
func TestMariaDB(t *testing.T) {
	needRoot(t)
	bin := programs(t)
	if _, err := os.Stat(filepath.Join(bin, "doppel")); err != nil {
		if out, err := exec.Command("go", "build", "-o", bin, "doppel/cmd/doppel").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	tree, err := lab.DebianTreeOf(t.Context(), "minbase", []string{"mariadb-server"}, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := &database{t: t, script: filepath.Join(dir, "in-database"), tree: tree}
	if err := os.WriteFile(d.script, []byte(inDatabase), 0o755); err != nil {
		t.Fatal(err)
	}
	do := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	do("sh", "-euc", "truncate -s 1G disk; mkfs.btrfs -q disk; mkdir head; mount -o loop disk head")
	t.Cleanup(func() { do("umount", "head") })
	head := filepath.Join(dir, "head")
	data := filepath.Join(head, "var/lib/mysql")
	d.create(data)
	t.Cleanup(d.serve(data)) // before it is unmounted
	d.query(data, "create database test; create table test.data (id bigint primary key, text varchar(1000) not null, key (text(20))) engine=innodb")

	var acknowledged atomic.Int64
	enough := make(chan struct{})
	stop := d.insert(data, &acknowledged, enough)
	doppel := func(args ...string) {
		t.Helper()
		do(filepath.Join(bin, "doppel"), append([]string{"--state", filepath.Join(dir, "state")}, args...)...)
	}
	// capture captures, and tells how many rows must be there.
	capture := func(args ...string) int64 {
		t.Helper()
		select {
		case <-enough:
		case <-time.After(2 * time.Minute):
			t.Fatalf("only %d rows were acknowledged", acknowledged.Load())
		}
		before := acknowledged.Load()
		doppel(append([]string{"capture", "local", "--root", head, "--name", "head"}, args...)...)
		return before
	}
	whole := func(data string, atLeast int64) {
		t.Helper()
		if got := d.query(data, "check table test.data extended"); !strings.HasSuffix(got, "status\tOK") {
			t.Errorf("check table: %s", got)
		}
		var rows, last, bad int64
		got := d.query(data, "select count(*), max(id), coalesce(sum(text <> "+rowText+"), 0) from test.data")
		if _, err := fmt.Sscan(got, &rows, &last, &bad); err != nil {
			t.Fatalf("%q: %v", got, err)
		}
		if rows != last || last < atLeast || bad != 0 {
			t.Errorf("%d rows up to %d, %d of them damaged; %d were acknowledged before the capture", rows, last, bad, atLeast)
		}
		t.Logf("%d rows, %d of them acknowledged before the capture", rows, atLeast)
	}

	t.Run("snapshot", func(t *testing.T) {
		least := capture("--snapshot", "require")
		second := filepath.Join(dir, "second")
		doppel("image", "restore", "head@latest", second)
		stop := d.serve(filepath.Join(second, "var/lib/mysql"))
		whole(filepath.Join(second, "var/lib/mysql"), least)
		stop()
	})
	t.Run("dump", func(t *testing.T) {
		dump := fmt.Sprintf("mkdir -p %s/var/backups && %s %s %s mariadb-dump --no-defaults %s --single-transaction --routines --events --all-databases >%[1]s/var/backups/mariadb.sql",
			head, d.script, tree, data, dbSocket)
		least := capture("--pre", dump, "--exclude", "var/lib/mysql")
		third := filepath.Join(dir, "third")
		doppel("image", "restore", "head@latest", third)
		empty := filepath.Join(third, "var/lib/mysql")
		if list, err := os.ReadDir(empty); err != nil || len(list) > 0 {
			t.Fatalf("what was to be left out is there: %v, %v", list, err)
		}
		d.create(empty)
		stop := d.serve(empty)
		sql, err := os.Open(filepath.Join(third, "var/backups/mariadb.sql"))
		if err != nil {
			t.Fatal(err)
		}
		defer sql.Close()
		load := d.command(empty, "mariadb", "--no-defaults", dbSocket)
		load.Stdin = sql
		if out, err := load.CombinedOutput(); err != nil {
			t.Fatalf("load the dump: %v\n%s", err, out)
		}
		whole(empty, least)
		stop()
	})
	stop()
}
