package cluster

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What a machine says of itself is cleaned before it is compared, so that one
// whose vendor class is nonsense does not cost a durable entry with each packet.
func TestSightHostileText(t *testing.T) {
	o := testOptions()
	o.FlushEvery = time.Hour
	c := open(t, filepath.Join(t.TempDir(), "cluster.db"), o)
	for range 10 {
		err := c.Sight(context.Background(), Sighting{MAC: mac(1), Arch: "bios", UUID: "u\x00\x1b[2J", VendorClass: "\x1b]0;x\a" + strings.Repeat("\xff", 300), Interface: "eth1"})
		if err != nil {
			t.Fatal(err)
		}
	}
	v, _ := c.Sighting(mac(1))
	if c.Seq() != 1 || v.Count != 10 {
		t.Errorf("%d entries for %d packets", c.Seq(), v.Count)
	}
	if strings.ContainsAny(v.UUID+v.VendorClass, "\x1b\a\x00") || len(v.VendorClass) > maxField {
		t.Errorf("kept as it came: %q", v.UUID+v.VendorClass)
	}
}
