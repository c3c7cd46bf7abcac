package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// accelerator is "kvm" where a guest really boots under it, and "tcg"
// otherwise: a /dev/kvm under which guests hang is common on rented machines.
// The answer is kept for as long as this machine is up; DOPPEL_LAB_ACCEL
// overrides it.
func accelerator(ctx context.Context) (string, error) {
	if a := os.Getenv("DOPPEL_LAB_ACCEL"); a != "" {
		return a, nil
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	name := filepath.Join(CacheDir(), "accel-"+strings.TrimSpace(string(boot)))
	if b, err := os.ReadFile(name); err == nil {
		return string(b), nil
	}
	tree, err := DebianTree(ctx, func(string) {})
	if err != nil {
		return "", err
	}
	kernels, err := filepath.Glob(filepath.Join(tree, "boot/vmlinuz-*"))
	if err != nil || len(kernels) == 0 {
		return "", fmt.Errorf("%s has no kernel in boot: remove it, and it is made anew", tree)
	}
	accel := "tcg"
	if probeKVM(ctx, kernels[0]) {
		accel = "kvm"
	}
	return accel, os.WriteFile(name, []byte(accel), 0o644)
}

// probeKVM boots a Linux kernel with no root, which panics and so ends QEMU,
// within some seconds where KVM works.
func probeKVM(ctx context.Context, kernel string) bool {
	if _, err := os.Stat("/dev/kvm"); err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-machine", "q35,accel=kvm", "-cpu", "host", "-smp", "2", "-m", "512",
		"-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-append", "console=ttyS0 panic=-1")
	out, err := cmd.Output()
	return err == nil && bytes.Contains(out, []byte("VFS: Unable to mount root fs"))
}
