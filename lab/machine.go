package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
)

// Firmware of a machine.
type Firmware string

const (
	BIOS Firmware = "bios" // SeaBIOS, iPXE in the card's ROM
	UEFI Firmware = "uefi" // OVMF, with its own PXE stack
)

// MachineOptions describe a machine. Zero fields get the values in brackets.
type MachineOptions struct {
	Name     string
	Firmware Firmware // [BIOS]
	MAC      string   // [52:54:00:d0:00:NN, by order]
	UUID     string   // [from the order]
	Memory   int      // MiB [1280]
	CPUs     int      // [2]
	DiskSize int64    // bytes [8 GB]; negative: no disk
	Disk     string   // an existing raw disk to use in place of a blank one

	// DiskFirst puts the disk before the card in the boot order.
	DiskFirst bool
}

// Machine is a QEMU process with a disk and a card on the switch. Its card is
// first in its boot order, its disk second, unless DiskFirst says otherwise.
type Machine struct {
	MachineOptions
	Vars    string   // UEFI variables
	Console *Console // what the serial port printed since the lab began

	lab  *Lab
	tap  string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

const (
	ovmfCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// Machine adds a machine to the switch; it is off.
func (l *Lab) Machine(ctx context.Context, o MachineOptions) (*Machine, error) {
	n := len(l.machines) + 1
	if o.Firmware == "" {
		o.Firmware = BIOS
	}
	if o.MAC == "" {
		o.MAC = fmt.Sprintf("52:54:00:d0:00:%02x", n)
	}
	if o.UUID == "" {
		o.UUID = fmt.Sprintf("d0bbe100-0000-4000-8000-%012x", n)
	}
	if o.Memory == 0 {
		o.Memory = 1280
	}
	if o.CPUs == 0 {
		o.CPUs = 2
	}
	if o.DiskSize == 0 {
		o.DiskSize = 8_000_000_000
	}
	m := &Machine{MachineOptions: o, lab: l, tap: fmt.Sprintf("t%d", n)}
	log, err := os.Create(filepath.Join(l.Dir, o.Name+".console"))
	if err != nil {
		return nil, err
	}
	m.Console = &Console{log: log}
	l.onClose(log.Close)
	if o.Disk == "" && o.DiskSize > 0 {
		m.Disk = filepath.Join(l.Dir, o.Name+".disk")
		f, err := os.Create(m.Disk)
		if err != nil {
			return nil, err
		}
		// Whole sectors, as disks are.
		if err := errors.Join(f.Truncate(o.DiskSize&^511), f.Close()); err != nil {
			return nil, err
		}
	}
	if o.Firmware == UEFI {
		m.Vars = filepath.Join(l.Dir, o.Name+".vars")
		b, err := os.ReadFile(ovmfVars)
		if err != nil {
			return nil, fmt.Errorf("UEFI needs the package ovmf: %w", err)
		}
		if err := os.WriteFile(m.Vars, b, 0o600); err != nil {
			return nil, err
		}
	}
	sw := l.ns("switch")
	if err := runAll(ctx,
		"ip -n "+sw+" tuntap add dev "+m.tap+" mode tap",
		"ip -n "+sw+" link set "+m.tap+" master br0 up",
	); err != nil {
		return nil, err
	}
	l.machines = append(l.machines, m)
	l.onClose(m.Cut)
	return m, nil
}

func (m *Machine) args(accel string) []string {
	a := []string{
		"-name", m.Name, "-machine", "q35,accel=" + accel, "-cpu", "max", "-smp", strconv.Itoa(m.CPUs),
		"-m", strconv.Itoa(m.Memory), "-uuid", m.UUID, "-nodefaults", "-display", "none",
		"-vga", "std", // GRUB on a BIOS hangs without one
		"-serial", "stdio", "-monitor", "none",
		"-netdev", "tap,id=n0,script=no,downscript=no,ifname=" + m.tap,
		"-device", "virtio-rng-pci",
	}
	if accel == "kvm" {
		a[5] = "host" // the value of -cpu
	}
	nicIndex, diskIndex := "0", "1"
	if m.DiskFirst {
		nicIndex, diskIndex = "1", "0"
	}
	nic := "virtio-net-pci,netdev=n0,mac=" + m.MAC + ",bootindex=" + nicIndex
	if m.Firmware == UEFI {
		// Without the card's ROM, OVMF boots with its own PXE stack.
		nic += ",romfile="
		a = append(a,
			// Nobody answers by IPv6 here, and OVMF would wait a minute for it.
			"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n",
			"-drive", "if=pflash,format=raw,readonly=on,file="+ovmfCode,
			"-drive", "if=pflash,format=raw,file="+m.Vars)
	}
	a = append(a, "-device", nic)
	if m.Disk != "" {
		a = append(a,
			"-drive", "if=none,id=d0,format=raw,cache=writeback,discard=unmap,file="+m.Disk,
			"-device", "virtio-blk-pci,drive=d0,serial=LAB-"+m.Name+",bootindex="+diskIndex)
	}
	return a
}

// Start powers the machine on.
func (m *Machine) Start(ctx context.Context) error {
	if m.Running() {
		return fmt.Errorf("machine %s is on already", m.Name)
	}
	accel, err := accelerator(ctx)
	if err != nil {
		return err
	}
	cmd := inNamespace(context.WithoutCancel(ctx), m.lab.ns("switch"), "qemu-system-x86_64", m.args(accel)...)
	var stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = m.Console, &stderr
	stdin, err := cmd.StdinPipe() // an open pipe, or QEMU sees the end of its console
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("powering %s on: %w", m.Name, err)
	}
	m.cmd, m.done = cmd, make(chan struct{})
	go func() {
		defer close(m.done)
		if m.err = cmd.Wait(); m.err != nil {
			m.err = fmt.Errorf("machine %s: %w: %s", m.Name, m.err, bytes.TrimSpace(stderr.Bytes()))
		}
		stdin.Close()
	}()
	return nil
}

// Running tells whether the machine is on.
func (m *Machine) Running() bool {
	if m.done == nil {
		return false
	}
	select {
	case <-m.done:
		return false
	default:
		return true
	}
}

// Cut takes the power away at once, as a pulled plug does. Cutting a machine
// that is off does nothing.
func (m *Machine) Cut() error {
	if m.done == nil {
		return nil
	}
	_ = m.cmd.Process.Kill() // it may have ended by itself
	<-m.done
	return nil
}

// Wait waits until the machine powers itself off.
func (m *Machine) Wait(ctx context.Context) error {
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to power off: %w", m.Name, context.Cause(ctx))
	}
}

// Console keeps what a serial port prints, and lets others wait for words in
// it. It is safe for concurrent use.
type Console struct {
	mu     sync.Mutex
	text   []byte
	log    io.Writer
	waiter chan struct{} // closed at the next write
}

// Write takes bytes from the serial port.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, p...)
	if c.waiter != nil {
		close(c.waiter)
		c.waiter = nil
	}
	return c.log.Write(p)
}

// Len is how many bytes were printed so far, for Await.
func (c *Console) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.text)
}

// Tail is the last n bytes printed.
func (c *Console) Tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text[max(0, len(c.text)-n):])
}

// Await waits until what was printed after the first from bytes matches re.
func (c *Console) Await(ctx context.Context, from int, re *regexp.Regexp) error {
	for {
		c.mu.Lock()
		found := re.Match(c.text[min(from, len(c.text)):])
		if c.waiter == nil {
			c.waiter = make(chan struct{})
		}
		more := c.waiter
		c.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %q on the console, which ends with:\n%s\n%w", re, c.Tail(2000), context.Cause(ctx))
		}
	}
}
