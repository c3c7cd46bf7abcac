package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// logical is a logical volume, as lvs(8) tells it.
type logical struct {
	vg, name, pool string
	dev            string // major:minor; empty: not active
	segments       string // segtype
	size           int64  // bytes
	extent         int64  // bytes of an extent of its group
	free           int64  // extents of its group
	full           float64
	invalid        bool // a snapshot that had no more room
	health         string
}

func (l *logical) String() string { return l.vg + "/" + l.name }
func (l *logical) thin() bool     { return l.segments == "thin" }

// The fields that parseVolumes reads.
const lvsFields = "vg_name,lv_name,pool_lv,lv_kernel_major,lv_kernel_minor,segtype,lv_size,vg_extent_size,vg_free_count,data_percent,lv_snapshot_invalid,lv_health_status"

// volumesOf lists the logical volumes of this machine.
func volumesOf(ctx context.Context) ([]logical, error) {
	out, err := lvm(ctx, "lvs", "--all", "--reportformat", "json", "--units", "b", "--nosuffix", "--binary", "--options", lvsFields)
	if err != nil {
		return nil, err
	}
	return parseVolumes(out)
}

// parseVolumes reads what lvs says with --reportformat json: all values are
// text, empty where there is none, and -1 for what is not known.
func parseVolumes(b []byte) ([]logical, error) {
	var report struct {
		Report []struct {
			LV []struct {
				VG      string `json:"vg_name"`
				Name    string `json:"lv_name"`
				Pool    string `json:"pool_lv"`
				Major   string `json:"lv_kernel_major"`
				Minor   string `json:"lv_kernel_minor"`
				Seg     string `json:"segtype"`
				Size    string `json:"lv_size"`
				Extent  string `json:"vg_extent_size"`
				Free    string `json:"vg_free_count"`
				Full    string `json:"data_percent"`
				Invalid string `json:"lv_snapshot_invalid"`
				Health  string `json:"lv_health_status"`
			} `json:"lv"`
		} `json:"report"`
	}
	if err := json.Unmarshal(b, &report); err != nil {
		return nil, fmt.Errorf("what lvs says: %w", err)
	}
	number := func(s string) int64 {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			return 0
		}
		return n
	}
	var out []logical
	seen := map[string]bool{}
	for _, r := range report.Report {
		for _, v := range r.LV {
			l := logical{vg: v.VG, name: strings.Trim(v.Name, "[]"), pool: strings.Trim(v.Pool, "[]"), segments: v.Seg,
				size: number(v.Size), extent: number(v.Extent), free: number(v.Free), health: v.Health}
			if l.vg == "" || l.name == "" || seen[l.String()] {
				continue // lvs has a line a segment
			}
			seen[l.String()] = true
			if number(v.Major) > 0 {
				l.dev = fmt.Sprintf("%d:%d", number(v.Major), number(v.Minor))
			}
			l.full, _ = strconv.ParseFloat(v.Full, 64)
			l.invalid = v.Invalid == "1" || strings.Contains(v.Invalid, "invalid")
			out = append(out, l)
		}
	}
	return out, nil
}

// lvm runs a command of lvm(8). It is not killed when ctx ends: that could leave
// a volume suspended, and whoever writes to it waiting for good.
func lvm(ctx context.Context, args ...string) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	name, err := findLVM()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	// Whoever waits for the end of this process's socket waits for the command,
	// too, if it outlives this process.
	if line, ok := ctx.Value(lineKey{}).(*os.File); ok {
		cmd.Stdin = line
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("lvm %s: %w: %s", args[0], err, lastLine(said.String()))
	}
	return out.Bytes(), nil
}

// lineKey is the context's key of the keeper's socket.
type lineKey struct{}

func findLVM() (string, error) {
	for _, name := range []string{"/usr/sbin/lvm", "/sbin/lvm"} {
		if _, err := os.Stat(name); err == nil {
			return name, nil
		}
	}
	return exec.LookPath("lvm")
}

// lastLine is the last line of what lvm said, warnings aside.
func lastLine(said string) string {
	last := ""
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "WARNING") {
			last = line
		}
	}
	return last
}

// Bounds of the room that a snapshot of a thick volume gets.
const (
	shareOfOrigin = 5        // one in so many of the origin's bytes, if there is room
	shareOfFree   = 0.8      // of the group's free extents, for all snapshots together
	leastShare    = 16 << 20 // bytes: less would be full at once
	fullPool      = 95       // percent, from which a thin pool takes no snapshot
)

// shares divides the free extents of volume groups among the snapshots of thick
// volumes: a fifth of its size for each, or less where that is not there. why
// says of a volume that it gets none.
func shares(origins []*logical) (extents map[*logical]int64, why map[*logical]string) {
	extents, why = map[*logical]int64{}, map[*logical]string{}
	wanted := map[string]int64{}
	want := func(l *logical) int64 {
		return max((l.size/shareOfOrigin+l.extent-1)/l.extent, (leastShare+l.extent-1)/l.extent)
	}
	for _, l := range origins {
		if !l.thin() && l.extent > 0 {
			wanted[l.vg] += want(l)
		}
	}
	for _, l := range origins {
		if l.thin() {
			continue
		}
		if l.extent <= 0 {
			why[l] = "lvs does not tell the size of extents in " + l.vg
			continue
		}
		budget := int64(float64(l.free) * shareOfFree)
		n := want(l)
		if wanted[l.vg] > budget {
			n = int64(float64(n) * float64(budget) / float64(wanted[l.vg]))
		}
		if n*l.extent < leastShare {
			why[l] = fmt.Sprintf("the volume group %s has %d MiB free, too little for a snapshot of %s", l.vg, l.free*l.extent>>20, l)
			continue
		}
		extents[l] = n
	}
	return extents, why
}

// createVolume takes a snapshot of a volume: of a thick one with so many
// extents.
func createVolume(ctx context.Context, l *logical, name string, extents int64) error {
	args := []string{"lvcreate", "--autobackup", "n", "--yes", "--snapshot", "--name", name}
	if l.thin() {
		args = append(args, "--setactivationskip", "n")
	} else {
		args = append(args, "--extents", strconv.FormatInt(extents, 10))
	}
	_, err := lvm(ctx, append(args, l.String())...)
	return err
}

// removeVolume removes a volume of a keeper's. It is no error if it is gone.
func removeVolume(ctx context.Context, vg, name string) error {
	if !isOwn(name) {
		return fmt.Errorf("%s/%s is none of a keeper's volumes", vg, name)
	}
	_, err := lvm(ctx, "lvremove", "--autobackup", "n", "--yes", vg+"/"+name)
	if err == nil {
		return nil
	}
	if list, e := volumesOf(ctx); e == nil && find(list, vg, name) == nil {
		return nil
	}
	return err
}

func find(list []logical, vg, name string) *logical {
	for i := range list {
		if list[i].vg == vg && list[i].name == name {
			return &list[i]
		}
	}
	return nil
}

// lost tells why a snapshot is not good any more; empty: it is.
func lost(list []logical, vg, name string) string {
	l := find(list, vg, name)
	switch {
	case l == nil:
		return fmt.Sprintf("the snapshot %s/%s was removed while it was read", vg, name)
	case l.invalid:
		return fmt.Sprintf("the snapshot %s/%s was full before it was read: more was written to its origin than it has room for (%d MiB)", vg, name, l.size>>20)
	case l.thin() && l.health != "":
		return fmt.Sprintf("the snapshot %s/%s: %s", vg, name, l.health)
	}
	if pool := find(list, vg, l.pool); l.thin() && pool != nil && (pool.health != "" || pool.full >= 100) {
		return fmt.Sprintf("the thin pool %s ran full while the snapshot %s was read", pool, name)
	}
	return ""
}

// sweepVolumes removes volumes that dead owners have left.
func sweepVolumes(ctx context.Context) error {
	if !anyVolume() {
		return nil
	}
	list, err := volumesOf(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range list {
		if o, ok := parseOwner(l.name); ok && !o.alive() {
			errs = append(errs, removeVolume(ctx, l.vg, l.name))
		}
	}
	return errors.Join(errs...)
}

// anyVolume tells whether LVM is in use here.
func anyVolume() bool {
	list, _ := filepath.Glob("/sys/block/dm-*/dm/uuid") // its pattern is good
	for _, name := range list {
		if isLogical(name) {
			return true
		}
	}
	return false
}

// isLogical tells whether the file dm/uuid of sysfs is that of a logical volume.
func isLogical(name string) bool {
	b, err := os.ReadFile(name)
	return err == nil && strings.HasPrefix(string(b), "LVM-")
}
