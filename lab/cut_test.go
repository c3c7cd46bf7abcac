package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"doppel/cluster"
)

// startSSHD makes the host head, whose sshd lets the daemon in.
func (d *day) startSSHD() {
	d.t.Helper()
	head, err := d.Host(d.ctx, "head", rigHead, nil)
	d.check(err)
	d.check(errors.Join(os.MkdirAll(d.Home, 0o700), os.MkdirAll("/run/sshd", 0o755)))
	for _, name := range []string{"host", "id"} {
		d.check(run(d.ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(d.Home, name)))
	}
	public, err := os.ReadFile(filepath.Join(d.Home, "host.pub"))
	d.check(err)
	d.check(os.WriteFile(filepath.Join(d.Home, "known"), append([]byte("10.77.0.1 "), public...), 0o600))
	config := strings.ReplaceAll("HostKey HOME/host\nAuthorizedKeysFile HOME/id.pub\nPidFile none\nStrictModes no\nPermitRootLogin yes\n", "HOME", d.Home)
	d.check(os.WriteFile(filepath.Join(d.Home, "sshd_config"), []byte(config), 0o600))
	said := &Console{log: &bytes.Buffer{}}
	cmd := head.Command(d.ctx, "/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(d.Home, "sshd_config"))
	cmd.Stderr = said
	d.check(cmd.Start())
	d.onClose(func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		return nil
	})
	d.check(said.Await(d.ctx, 0, regexp.MustCompile(`Server listening on`)))
}

// on runs a command on a host of the lab, and gives what it prints.
func (d *day) on(host string, args ...string) string {
	d.t.Helper()
	out, err := exec.CommandContext(d.ctx, "ip", append([]string{"netns", "exec", d.ns(host)}, args...)...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// slow has a host send 4 MB/s.
func (d *day) slow(host string) {
	d.on(host, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "32mbit", "burst", "64kb", "latency", "200ms")
}

// received is how many bytes a host has ever received.
func (d *day) received(host string) int64 {
	d.t.Helper()
	for line := range strings.Lines(d.on(host, "cat", "/proc/net/dev")) {
		if name, counters, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "eth0" {
			n, err := strconv.ParseInt(strings.Fields(counters)[0], 10, 64)
			d.check(err)
			return n
		}
	}
	d.t.Fatal("there is no eth0")
	return 0
}

// poll waits for what nobody tells: the counters and sockets of a host.
func (d *day) poll(what string, until func() bool) {
	d.t.Helper()
	for !until() {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-d.ctx.Done():
			d.t.Fatalf("waiting until %s: %v", what, d.ctx.Err())
		}
	}
}

func (d *day) awaitReceived(host string, n int64) {
	d.t.Helper()
	d.poll(fmt.Sprintf("%s has received %d bytes", host, n), func() bool { return d.received(host) >= n })
}

// addrs are the hosts' addresses.
var addrs = map[string]string{"head": "10.77.0.1", "server": "10.77.0.2", "standby": "10.77.0.12"}

// cut cuts the connections of two hosts: they are reset, or nothing passes any
// more, in silence, until it is healed.
func (d *day) cut(a, b string, silence bool) {
	d.t.Helper()
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		if silence {
			d.on(pair[0], "nft", fmt.Sprintf("add table inet cut; add chain inet cut in { type filter hook input priority 0; }; add rule inet cut in ip saddr %s drop", addrs[pair[1]]))
		} else {
			d.on(pair[0], "ss", "-K", "dst", addrs[pair[1]])
		}
	}
}

func (d *day) heal(hosts ...string) {
	d.t.Helper()
	for _, host := range hosts {
		d.on(host, "nft", "delete table inet cut")
	}
}

// load gives a tree a file of 16 MB that nobody has seen yet.
func (d *day) load(root string, seed int) {
	d.t.Helper()
	d.check(os.WriteFile(filepath.Join(root, "srv/load"), noise(5000+seed, 16<<20), 0o644))
}

const loadBytes = 16 << 20

// last is the last round of an image.
func (d *day) last(image string) cluster.Round {
	d.t.Helper()
	var list []cluster.Sync
	d.check(json.Unmarshal([]byte(d.doppel("sync", "status", "--json")), &list))
	for _, s := range list {
		if s.Image == image && s.Last != nil {
			return *s.Last
		}
	}
	d.t.Fatalf("%s had no round", image)
	return cluster.Round{}
}

// inTwo runs both kinds of cuts.
func inTwo(t *testing.T, do func(silence bool)) {
	for _, silence := range []bool{false, true} {
		began := time.Now()
		do(silence)
		t.Logf("silence %v: %v", silence, time.Since(began).Round(time.Second))
	}
}

// captureCut cuts a capture in the middle: the round fails and says why, and
// the next one sends what is missing alone.
func captureCut(d *day, image, source string, load func(seed int), reasons map[bool]string) {
	d.slow(source)
	seed := 0
	inTwo(d.t, func(silence bool) {
		seed++
		load(seed)
		var said bytes.Buffer
		from := d.received("server")
		now := d.Doppel(d.ctx, "sync", "now", image)
		now.Stdout, now.Stderr = &said, &said
		d.check(now.Start())
		d.awaitReceived("server", from+10<<20)
		d.cut("server", source, silence)
		began := time.Now()
		if err := now.Wait(); err == nil {
			d.t.Errorf("a round that was cut succeeded: %s", said.String())
		}
		took := time.Since(began)
		if r := d.last(image); !regexp.MustCompile(reasons[silence]).MatchString(r.Failed) || !strings.Contains(said.String(), "failed: ") || took > 90*time.Second {
			d.t.Errorf("silence %v: after %v it says %q: %s", silence, took, r.Failed, said.String())
		}
		if silence {
			d.heal("server", source)
		}
		d.doppel("sync", "now", image)
		if r := d.last(image); r.Failed != "" || r.Unchanged || r.Sent > loadBytes-6<<20 || r.Sent < 2<<20 {
			d.t.Errorf("silence %v: the next round sent %d bytes: %+v", silence, r.Sent, r)
		}
	})
}

// TestSyncCutCaptureBySSH cuts the connection to the source in the middle of a
// round, once with a reset and once in silence.
func TestSyncCutCaptureBySSH(t *testing.T) {
	t.Parallel()
	d := newDay(t, 5*time.Minute, `
[[sync]]
image = "head"
source = "root@10.77.0.1"
root = "SOURCE"
identity = "HOME/id"
known_hosts = "HOME/known"
nodes = ["standby"]
interval = "24h"
`)
	captureCut(d, "head", "head", func(seed int) { d.load(d.source, seed) }, map[bool]string{false: "lost|closed|reset", true: "no sign of life"})
}

// TestSyncCutCaptureOfNode does the same to a capture of a node through its
// agent, which asks for work again by itself.
func TestSyncCutCaptureOfNode(t *testing.T) {
	t.Parallel()
	d := newDay(t, 5*time.Minute, `
[[sync]]
image = "head"
source = "local"
root = "SOURCE"
nodes = []
interval = "24h"
[[sync]]
image = "copy"
source = "node:standby"
interval = "24h"
`)
	d.doppel("sync", "pause", "copy")
	d.doppel("sync", "now", "copy")
	captureCut(d, "copy", "standby", func(seed int) { d.load(d.live(), seed) }, map[bool]string{false: "reset|closed|ended", true: "timed out|no sign of life"})
}

// live is the standby's tree while it runs.
func (d *day) live() string { return fmt.Sprintf("/proc/%d/root%s", d.double.first(), d.double.Mount) }

// TestSyncCutUpdate cuts the connection of a standby to the daemon in the middle
// of an update: it goes on by itself when the daemon is reached again, and asks
// for nothing that it has already; it can start at any time.
func TestSyncCutUpdate(t *testing.T) {
	t.Parallel()
	d := newDay(t, 5*time.Minute, followConfig)
	d.slow("server")
	// Undisturbed, and by which of the two kinds of generations comes.
	var whole [2]int64
	generation := 1
	for range 2 {
		generation++
		d.write(generation)
		d.load(d.source, generation)
		from := d.received("standby")
		d.becomes(d.round())
		whole[generation%2] = d.received("standby") - from
	}
	inTwo(t, func(silence bool) {
		generation++
		d.write(generation)
		d.load(d.source, generation)
		from := d.received("standby")
		version := d.round()
		d.awaitReceived("standby", from+8<<20)
		d.cut("server", "standby", silence)
		wholeTree(t, d.live())
		if silence {
			d.poll("the node dials anew", func() bool { return d.on("standby", "ss", "-Htn", "state", "syn-sent", "dport", "=", ":8480") != "" })
			wholeTree(t, d.live())
			d.heal("server", "standby")
		}
		d.becomes(version)
		if again := d.received("standby") - from; again > whole[generation%2]+4<<20 {
			t.Errorf("silence %v: it received %d bytes, and %d when it was not cut", silence, again, whole[generation%2])
		}
		d.equals(version)
	})
}
