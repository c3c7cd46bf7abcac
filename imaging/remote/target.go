package remote

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Target is where to connect to, as far as the user said it.
type Target struct {
	User string // empty: ssh_config's, else the local user's name
	Host string // name, address, or alias of ssh_config
	Port int    // 0: ssh_config's, else 22
}

// ParseTarget reads [USER@]HOST[:PORT]. An IPv6 address with a port stands in
// brackets; without one it may.
func ParseTarget(s string) (Target, error) {
	var t Target
	rest := s
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		t.User, rest = rest[:i], rest[i+1:]
		if t.User == "" {
			return t, fmt.Errorf("%q names no user in front of the @", s)
		}
	}
	port := ""
	switch {
	case strings.HasPrefix(rest, "["):
		end := strings.IndexByte(rest, ']')
		if end < 0 {
			return t, fmt.Errorf("%q lacks the closing bracket", s)
		}
		t.Host = rest[1:end]
		if tail := rest[end+1:]; tail != "" {
			if tail[0] != ':' {
				return t, fmt.Errorf("%q has %q after the bracket, want :PORT", s, tail)
			}
			port = tail[1:]
			if port == "" {
				return t, fmt.Errorf("%q names no port after the colon", s)
			}
		}
	case strings.Count(rest, ":") == 1:
		t.Host, port, _ = strings.Cut(rest, ":")
		if port == "" {
			return t, fmt.Errorf("%q names no port after the colon", s)
		}
	default:
		t.Host = rest
	}
	if port != "" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return t, fmt.Errorf("%q: port %q is not between 1 and 65535", s, port)
		}
		t.Port = int(n)
	}
	return t, t.check(s)
}

// check refuses what no host can be called. A leading dash is what turns a
// name into an option of whatever it is given to next.
func (t Target) check(s string) error {
	switch {
	case t.Host == "":
		return fmt.Errorf("%q names no host: want [USER@]HOST[:PORT]", s)
	case strings.HasPrefix(t.Host, "-"), strings.HasPrefix(t.User, "-"):
		return fmt.Errorf("%q: neither user nor host may begin with a dash", s)
	case strings.ContainsFunc(t.Host, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`/\"'[]@`, r) }):
		return fmt.Errorf("%q: %q is not the name of a host", s, t.Host)
	case strings.ContainsFunc(t.User, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return fmt.Errorf("%q: %q is not the name of a user", s, t.User)
	}
	if strings.Contains(t.Host, ":") {
		if _, err := netip.ParseAddr(t.Host); err != nil {
			return fmt.Errorf("%q: %q is neither a name nor an IPv6 address", s, t.Host)
		}
	}
	return nil
}

// String writes the target as ParseTarget reads it.
func (t Target) String() string {
	s := t.Host
	if t.Port != 0 {
		s = net.JoinHostPort(t.Host, strconv.Itoa(t.Port))
	} else if strings.Contains(t.Host, ":") {
		s = "[" + t.Host + "]"
	}
	if t.User != "" {
		s = t.User + "@" + s
	}
	return s
}
