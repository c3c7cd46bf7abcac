package cluster

import (
	"encoding/json"
	"testing"
)

func TestParseMAC(t *testing.T) {
	want := MAC{0x52, 0x54, 0x00, 0x12, 0xab, 0xcd}
	for _, s := range []string{
		"52:54:00:12:ab:cd", "52:54:00:12:AB:CD", "52-54-00-12-ab-cd", "5254.0012.abcd", "52540012abcd", "52540012ABCD",
	} {
		if got, err := ParseMAC(s); err != nil || got != want {
			t.Errorf("ParseMAC(%q) = %v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "52:54:00:12:ab", "52:54:00:12:ab:cd:ef", "52:54:00:12:ab:cg", "52:54-00:12:ab:cd", "52.54.00.12.ab.cd",
		"5254:0012:abcd", " 52540012abcd", "5254.0012-abcd", "52:54:00:12:ab:c", "0x540012abcd",
	} {
		if got, err := ParseMAC(s); err == nil {
			t.Errorf("ParseMAC(%q) = %v, want an error", s, got)
		}
	}
	if got := want.String(); got != "52:54:00:12:ab:cd" {
		t.Errorf("String() = %q", got)
	}
}

func TestMACUnicast(t *testing.T) {
	for m, want := range map[MAC]bool{
		{0x52, 0x54, 0, 0, 0, 1}:             true,
		{}:                                   false,
		{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}: false,
		{0x01, 0x00, 0x5e, 0, 0, 1}:          false, // RFC 1112 multicast
	} {
		if m.Unicast() != want {
			t.Errorf("%s.Unicast() = %v", m, !want)
		}
	}
}

func FuzzParseMAC(f *testing.F) {
	for _, s := range []string{"52:54:00:12:ab:cd", "52-54-00-12-ab-cd", "5254.0012.abcd", "52540012abcd", "::::::", "é4:00:12:ab:cd:ef"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMAC(s)
		if err != nil {
			return
		}
		again, err := ParseMAC(m.String())
		if err != nil || again != m {
			t.Fatalf("%q gives %s, which gives %s, %v", s, m, again, err)
		}
		b, err := json.Marshal(map[MAC]MAC{m: m})
		if err != nil {
			t.Fatal(err)
		}
		var back map[MAC]MAC
		if err := json.Unmarshal(b, &back); err != nil || back[m] != m {
			t.Fatalf("%s does not come back: %v, %v", b, back, err)
		}
	})
}
