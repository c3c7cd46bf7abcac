package cluster

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// ParseMAC reads an Ethernet address as people and machines write it:
// 52:54:00:12:34:56, 52-54-00-12-34-56 (Windows, DHCP logs), 5254.0012.3456
// (Cisco) and 525400123456 (labels, and iPXE's ${mac:hexraw}), in either case.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	bad := func() (MAC, error) {
		return MAC{}, fmt.Errorf("%q is not a MAC address: want six bytes as in 52:54:00:12:34:56", s)
	}
	var digits string
	switch len(s) {
	case 12:
		digits = s
	case 14:
		if s[4] != '.' || s[9] != '.' {
			return bad()
		}
		digits = s[:4] + s[5:9] + s[10:]
	case 17:
		sep := s[2]
		if sep != ':' && sep != '-' {
			return bad()
		}
		var b strings.Builder
		for i := 0; i < len(s); i += 3 {
			if i > 0 && s[i-1] != sep {
				return bad()
			}
			b.WriteString(s[i : i+2])
		}
		digits = b.String()
	default:
		return bad()
	}
	if _, err := hex.Decode(m[:], []byte(digits)); err != nil {
		return bad()
	}
	return m, nil
}

// String writes the address in lower case with colons.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Unicast tells whether one NIC may have the address: the group bit of the
// first byte (IEEE 802, 3.2.3.1) is clear and the address is not all zeros.
func (m MAC) Unicast() bool { return m != MAC{} && m[0]&1 == 0 }

// MarshalText and UnmarshalText let a MAC travel in JSON, as a key too.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

func (m *MAC) UnmarshalText(b []byte) error {
	p, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = p
	return nil
}
