package dhcpd

import (
	"encoding/hex"
	"fmt"
)

// String writes the address in lower case with colons.
func (m MAC) String() string {
	b := make([]byte, 0, 17)
	for i, octet := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = hex.AppendEncode(b, []byte{octet})
	}
	return string(b)
}

// ParseMAC reads an address in any of the ways people and tools write one:
// 52:54:00:12:34:56, 52-54-00-12-34-56, 5254.0012.3456, 525400123456.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	var digits [12]byte
	var n int
	var separator byte
	group := 0 // digits since the last separator
	for i := range len(s) {
		c := s[i]
		if c == ':' || c == '-' || c == '.' {
			want := 2
			if c == '.' {
				want = 4
			}
			if group != want || separator != 0 && separator != c {
				return MAC{}, macError(s)
			}
			separator, group = c, 0
			continue
		}
		if n == len(digits) {
			return MAC{}, macError(s)
		}
		digits[n] = c
		n++
		group++
	}
	whole := map[byte]int{0: 12, ':': 2, '-': 2, '.': 4}
	if n != len(digits) || group != whole[separator] {
		return MAC{}, macError(s)
	}
	if _, err := hex.Decode(m[:], digits[:]); err != nil {
		return MAC{}, macError(s)
	}
	return m, nil
}

func macError(s string) error {
	return fmt.Errorf("%q is not an Ethernet address (six octets in hexadecimal, as in 52:54:00:12:34:56)", s)
}

// MarshalText writes the address as String does.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads what ParseMAC reads.
func (m *MAC) UnmarshalText(text []byte) error {
	parsed, err := ParseMAC(string(text))
	if err != nil {
		return err
	}
	*m = parsed
	return nil
}

// unicast says whether the address can be one machine's.
func (m MAC) unicast() bool { return m != MAC{} && m[0]&1 == 0 }
