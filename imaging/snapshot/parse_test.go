package snapshot

import (
	"bytes"
	"encoding/json"
	"math"
	"path"
	"strings"
	"testing"
)

func TestOwner(t *testing.T) {
	me, err := self()
	must(t, err)
	for _, name := range []string{me.String(), me.volume(12)} {
		if o, ok := parseOwner(name); !ok || o != me || !o.alive() {
			t.Errorf("%s: %+v, %v", name, o, ok)
		}
	}
	later, other, gone := me, me, me
	later.start++
	other.boot = strings.Map(func(r rune) rune { return '0' + (r+1)%10 }, me.boot)
	gone.pid = math.MaxInt32
	for _, o := range []owner{later, other, gone} {
		if o.alive() {
			t.Errorf("%s lives", o)
		}
	}
	for _, name := range []string{"", "doppel-snapshot-", "doppel-snapshot-0123456-1-1", "doppel-snapshot-01234567-0-1", "doppel-snapshot-01234567-1-1-x",
		"doppel-snapshot-01234567-99999999999-1", "x" + me.String(), me.String() + "/", me.String() + "\n"} {
		if o, ok := parseOwner(name); ok {
			t.Errorf("%q is of %s", name, o)
		}
	}
}

func FuzzParseOwner(f *testing.F) {
	f.Add("doppel-snapshot-01234567-123-456789-1")
	f.Add("doppel-snapshot-01234567-9999999999-9999999999999999999")
	f.Fuzz(func(t *testing.T, name string) {
		if o, ok := parseOwner(name); ok && (!strings.HasPrefix(name, prefix) || strings.ContainsAny(name, "/\x00 ") || o.pid <= 0) {
			t.Errorf("%q is of %+v", name, o)
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (a ) b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 176365 0 0"))
	f.Add([]byte("12 (sh) Z 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, err := parseStat(b); err == nil && bytes.LastIndexByte(b, ')') < 0 {
			t.Error("a process without a name")
		}
	})
}

const lvsSays = `
  {
      "report": [
          {
              "lv": [
                  {"vg_name":"vg", "lv_name":"root", "pool_lv":"", "lv_kernel_major":"254", "lv_kernel_minor":"3", "segtype":"linear", "lv_size":"1073741824", "vg_extent_size":"4194304", "vg_free_count":"100", "data_percent":"", "lv_snapshot_invalid":"-1", "lv_health_status":""},
                  {"vg_name":"vg", "lv_name":"root", "pool_lv":"", "lv_kernel_major":"254", "lv_kernel_minor":"3", "segtype":"linear", "lv_size":"1073741824", "vg_extent_size":"4194304", "vg_free_count":"100", "data_percent":"", "lv_snapshot_invalid":"-1", "lv_health_status":""},
                  {"vg_name":"vg", "lv_name":"thin", "pool_lv":"pool", "lv_kernel_major":"254", "lv_kernel_minor":"5", "segtype":"thin", "lv_size":"2147483648", "vg_extent_size":"4194304", "vg_free_count":"100", "data_percent":"4.50", "lv_snapshot_invalid":"-1", "lv_health_status":""},
                  {"vg_name":"vg", "lv_name":"[pool]", "pool_lv":"", "lv_kernel_major":"254", "lv_kernel_minor":"4", "segtype":"thin-pool", "lv_size":"536870912", "vg_extent_size":"4194304", "vg_free_count":"100", "data_percent":"96.10", "lv_snapshot_invalid":"-1", "lv_health_status":""},
                  {"vg_name":"vg", "lv_name":"snap", "pool_lv":"", "lv_kernel_major":"-1", "lv_kernel_minor":"-1", "segtype":"linear", "lv_size":"16777216", "vg_extent_size":"4194304", "vg_free_count":"100", "data_percent":"100.00", "lv_snapshot_invalid":"1", "lv_health_status":""}
              ]
          }
      ]
  }
`

func TestParseVolumes(t *testing.T) {
	list, err := parseVolumes([]byte(lvsSays))
	must(t, err)
	if len(list) != 4 {
		t.Fatalf("%+v", list)
	}
	root, thin, pool, snap := &list[0], &list[1], &list[2], &list[3]
	if root.dev != "254:3" || root.thin() || root.size != 1<<30 || root.extent != 4<<20 || root.free != 100 {
		t.Errorf("%+v", root)
	}
	if !thin.thin() || find(list, thin.vg, thin.pool) != pool || pool.full != 96.1 {
		t.Errorf("%+v %+v", thin, pool)
	}
	if !snap.invalid || snap.dev != "" || !strings.Contains(lost(list, "vg", "snap"), "was full") {
		t.Errorf("%+v: %s", snap, lost(list, "vg", "snap"))
	}
	if lost(list, "vg", "root") != "" || lost(list, "vg", "thin") != "" || lost(list, "vg", "none") == "" {
		t.Error("what is good and what is lost")
	}
	pool.full = 100
	if lost(list, "vg", "thin") == "" {
		t.Error("a pool that ran full")
	}
	for _, bad := range []string{"", "  WARNING: x", `{"report":[{"lv":[{"lv_name":7}]}]}`} {
		if _, err := parseVolumes([]byte(bad)); err == nil {
			t.Errorf("%q is good", bad)
		}
	}
}

func FuzzParseVolumes(f *testing.F) {
	f.Add([]byte(lvsSays))
	f.Add([]byte(`{"report":[{"lv":[]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseVolumes(b)
		var origins []*logical
		for i := range list {
			if err != nil || list[i].vg == "" || list[i].size < 0 || list[i].extent < 0 || list[i].free < 0 {
				t.Errorf("%v, %+v", err, list[i])
			}
			origins = append(origins, &list[i])
		}
		extents, _ := shares(origins)
		for l, n := range extents {
			if n <= 0 || n > l.free {
				t.Errorf("%d extents of %+v", n, l)
			}
		}
	})
}

// No volume group is asked for more than it has, and a share that would be full
// at once is none.
func TestShares(t *testing.T) {
	const extent = 4 << 20
	volume := func(vg, name string, size, free int64) *logical {
		return &logical{vg: vg, name: name, segments: "linear", size: size, extent: extent, free: free}
	}
	roomy := volume("roomy", "root", 10<<30, 100_000)
	small := volume("roomy", "small", 20<<20, 100_000)
	a, b := volume("tight", "a", 10<<30, 200), volume("tight", "b", 30<<30, 200)
	full := volume("full", "root", 10<<30, 0)
	thin := &logical{vg: "tight", name: "thin", segments: "thin", size: 1 << 40}
	extents, why := shares([]*logical{roomy, small, a, b, full, thin})
	if extents[roomy] != 512 || extents[small] != 4 || why[roomy] != "" {
		t.Errorf("roomy: %d, %d", extents[roomy], extents[small])
	}
	if extents[a] != 40 || extents[b] != 120 {
		t.Errorf("tight: %d and %d", extents[a], extents[b])
	}
	if _, ok := extents[full]; ok || !strings.Contains(why[full], "the volume group full has 0 MiB free") {
		t.Errorf("full: %q", why[full])
	}
	if _, ok := extents[thin]; ok || why[thin] != "" {
		t.Error("a thin snapshot needs no room")
	}
}

func FuzzParseRecords(f *testing.F) {
	f.Add([]byte(`[{"dir":"/srv/db","dev":65025}]`))
	f.Add([]byte(`[{"dir":"srv"}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseRecords(b)
		for _, r := range list {
			if err == nil && !path.IsAbs(r.Dir) {
				t.Errorf("%+v", r)
			}
		}
	})
}

func FuzzPlan(f *testing.F) {
	f.Add([]byte(`{"root":"/","mode":"auto","parts":[{"Path":".","Root":"/@","Dev":"0:30","FS":"btrfs","Source":"/dev/sda2","Read":true},{"Path":"srv/db","Root":"/","Dev":"8:1","FS":"xfs","Read":true,"freeze":true}],"freeze":[{"path":"srv/db","for":30000000000}]}`))
	f.Add([]byte(`{"root":"/","parts":[{"Path":"..","Root":"/"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p plan
		if json.Unmarshal(b, &p) != nil || p.check() != nil || p.Root == "" {
			return
		}
		for _, e := range p.Parts {
			if path.Join("/", e.Path) != path.Clean("/"+e.Path) || strings.HasPrefix(e.Path, "..") || strings.HasPrefix(e.Path, "/") {
				t.Errorf("part %q", e.Path)
			}
		}
	})
}
