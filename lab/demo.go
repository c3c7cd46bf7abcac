package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// DemoOptions describe a run of the demo.
type DemoOptions struct {
	Firmware Firmware
	Bin      string // directory of doppel and doppel-agent
	Out      io.Writer
}

// Demo shows the main job from nothing: a running head is captured, a blank
// machine boots from the network, gets the image, and starts from its own disk
// as a working double, which is then compared with the image. It fails if
// anything is not as it should be.
func Demo(ctx context.Context, o DemoOptions) (err error) {
	d := &demo{DemoOptions: o, began: time.Now()}
	defer func() {
		if d.rig == nil {
			return
		}
		if err != nil {
			d.showLogs()
		}
		err = errors.Join(err, d.rig.Close())
	}()
	for _, s := range []struct {
		title string
		run   func(context.Context) error
	}{
		{"A head: Debian with its sshd, on a private switch, its files changing", d.makeHead},
		{"doppel on a machine beside it: set up, serve, capture the head", d.capture},
		{"A blank machine is switched on and asks the network for a boot", d.collect},
		{"It gets a name, an address and the image", d.deploy},
		{"Logging in to the double", d.login},
		{"Comparing the double's disk with the image, entry by entry", d.compare},
	} {
		d.step++
		fmt.Fprintf(o.Out, "\n== %d. %s  [%s]\n", d.step, s.title, d.elapsed(d.began))
		start := time.Now()
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("step %d: %w", d.step, err)
		}
		d.fact(fmt.Sprintf("step %d took", d.step), d.elapsed(start), true)
	}
	return d.summary()
}

// demo is one run.
type demo struct {
	DemoOptions
	rig     *Rig
	machine *Machine
	began   time.Time
	step    int
	runs    string // what the node says it runs: head@N
	facts   []fact
}

// fact is one line of the summary, and whether it is as it should be.
type fact struct {
	name, value string
	good        bool
}

func (d *demo) fact(name, value string, good bool) {
	d.facts = append(d.facts, fact{name, value, good})
}

// is records a fact that must have one value.
func (d *demo) is(name, have, want string) {
	if have == want {
		d.fact(name, have, true)
		return
	}
	d.fact(name, fmt.Sprintf("%s, not %s", have, want), false)
}

func (d *demo) elapsed(since time.Time) string {
	return time.Since(since).Round(100 * time.Millisecond).String()
}

const (
	demoNode  = "node001"
	demoFirst = "10.77.0.11"
)

func (d *demo) makeHead(ctx context.Context) error {
	rig, err := NewRig(ctx, "/var/tmp/doppel-demo", d.Bin, d.Out)
	if err != nil {
		return err
	}
	d.rig = rig
	fmt.Fprintf(d.Out, "head: %s, root in %s\n", rig.Head.Addr, rig.Head.Tree)
	return nil
}

func (d *demo) capture(ctx context.Context) error {
	r := d.rig
	if _, err := r.Run(ctx, "init", "--interface", "eth0"); err != nil {
		return err
	}
	if err := r.Serve(ctx); err != nil {
		return err
	}
	if _, err := r.Run(ctx, "preflight", "--host", "root@head", "--accept-new"); err != nil {
		return err
	}
	if _, err := r.Run(ctx, "capture", "root@head", "--name", "head"); err != nil {
		return err
	}
	if _, err := r.Run(ctx, "image", "show", "head@latest"); err != nil {
		return err
	}
	_, err := r.Run(ctx, "capture", "root@head", "--name", "head")
	return err
}

func (d *demo) collect(ctx context.Context) error {
	m, err := d.rig.Machine(ctx, MachineOptions{Name: demoNode, Firmware: d.Firmware})
	if err != nil {
		return err
	}
	d.machine = m
	fmt.Fprintf(d.Out, "power on: %s firmware, blank disk of %d GB, network card %s first in its boot order\n", d.Firmware, m.DiskSize/1e9, m.MAC)
	if err := m.Start(ctx); err != nil {
		return err
	}
	out, err := d.rig.Run(ctx, "collect", "--for", "10m", "--count", "1")
	if err != nil {
		return err
	}
	d.fact("machine collected", m.MAC, strings.Contains(out, m.MAC))
	return nil
}

func (d *demo) deploy(ctx context.Context) error {
	for _, args := range [][]string{
		{"node", "add", "--base", "node", "--count", "1", "--start", "1", "--pad", "3", "--ip", demoFirst},
		{"assign", d.machine.MAC, demoNode},
		{"deploy", demoNode, "--image", "head@latest", "--dry-run"},
		{"deploy", demoNode, "--image", "head@latest", "--watch", "--yes"},
		{"status"},
		{"events", "--node", demoNode},
	} {
		if _, err := d.rig.Run(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// nodeShown is what the demo reads of doppel node show --json.
type nodeShown struct {
	State   string `json:"state"`
	UpFrom  string `json:"up_from"`
	Runs    string `json:"runs"`
	Reason  string `json:"reason"`
	Install struct {
		ID string `json:"id"`
	} `json:"install"`
}

func (d *demo) login(ctx context.Context) error {
	addr := netip.MustParseAddr(demoFirst)
	line := "hostname; ip -br -4 addr; uname -r; lsblk -o NAME,SIZE,FSTYPE,MOUNTPOINTS,UUID; findmnt -no SOURCE /"
	fmt.Fprintf(d.Out, "$ ssh root@%s '%s'\n", demoFirst, line)
	out, err := d.rig.SSH(ctx, addr, line).CombinedOutput()
	if _, werr := (&indenter{w: d.Out}).Write(out); werr != nil {
		return werr
	}
	if err != nil {
		return fmt.Errorf("logging in to the node: %w", err)
	}
	name, _, _ := strings.Cut(string(out), "\n")
	d.is("host name", name, demoNode)
	d.fact("address", demoFirst, strings.Contains(string(out), demoFirst+"/24"))

	text, err := d.rig.Run(ctx, "node", "show", demoNode, "--json")
	if err != nil {
		return err
	}
	var n nodeShown
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		return fmt.Errorf("reading node show --json: %w", err)
	}
	d.is("state", n.State, "Installed")
	d.fact("runs", n.Runs, strings.HasPrefix(n.Runs, "head@"))
	d.runs = n.Runs
	d.is("up from its own disk, GUID", strings.ToUpper(n.UpFrom), strings.ToUpper(n.Install.ID))

	fmt.Fprintf(d.Out, "$ ssh root@%s poweroff\n", demoFirst)
	_ = d.rig.SSH(ctx, addr, "systemctl poweroff").Run() // the connection is cut by it
	if err := d.machine.Wait(ctx); err != nil {
		return err
	}
	guid, parts, err := ReadDisk(ctx, d.machine.Disk)
	if err != nil {
		return err
	}
	d.is("disk GUID", strings.ToUpper(guid), strings.ToUpper(n.Install.ID))
	var layout []string
	for _, p := range parts {
		layout = append(layout, strings.TrimSpace(fmt.Sprintf("%d MB %s", p.Size/1e6, p.FS)))
	}
	d.fact("disk layout", strings.Join(layout, ", "), len(parts) > 1)
	return nil
}

func (d *demo) compare(ctx context.Context) error {
	fmt.Fprintf(d.Out, "$ doppel image compare %s DISK --role compute\n", d.runs)
	err := OnDisk(ctx, d.machine.Disk, filepath.Join(d.rig.Dir, "mnt"), &indenter{w: d.Out},
		filepath.Join(d.Bin, "doppel"), "--state", d.rig.State, "image", "compare", d.runs, "@ROOT@", "--role", "compute")
	d.fact("disk equals image, identity aside", fmt.Sprint(err == nil), err == nil)
	return nil
}

func (d *demo) summary() error {
	fmt.Fprintf(d.Out, "\n== Summary, %s firmware\n", d.Firmware)
	t := tabwriter.NewWriter(d.Out, 0, 0, 2, ' ', 0)
	d.fact("total", d.elapsed(d.began), true)
	bad := 0
	for _, f := range d.facts {
		mark := "ok"
		if !f.good {
			mark, bad = "WRONG", bad+1
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", mark, f.name, f.value)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if bad > 0 {
		d.showLogs()
		return fmt.Errorf("%d things are not as they should be", bad)
	}
	return nil
}

// showLogs shows what a person would look at first after a failure.
func (d *demo) showLogs() {
	if d.machine != nil {
		fmt.Fprintf(d.Out, "\n-- the machine's console ends with:\n%s\n", d.machine.Console.Tail(3000))
	}
	if log := d.rig.DaemonLog(); log != nil {
		fmt.Fprintf(d.Out, "\n-- the daemon's log ends with:\n%s\n", log.Tail(3000))
	}
}
