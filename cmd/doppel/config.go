package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/google/renameio/v2"
	"github.com/pelletier/go-toml/v2"

	"doppel/dhcpd"
)

// configFile is the file as it is written: strings, unchecked.
type configFile struct {
	Network struct {
		Interface string   `toml:"interface"`
		Address   string   `toml:"address"`
		Pool      string   `toml:"pool"`
		Gateway   string   `toml:"gateway"`
		DNS       []string `toml:"dns"`
		Domain    string   `toml:"domain"`
		Lease     string   `toml:"lease"`
	} `toml:"network"`
	Serve struct {
		HTTP string `toml:"http"`
		TLS  string `toml:"tls"`
	} `toml:"serve"`
	IPXE  map[string]string `toml:"ipxe"`
	Agent struct {
		Path string `toml:"path"`
	} `toml:"agent"`
	Sync []syncFile `toml:"sync"`
}

// config is the file after everything in it was checked.
type config struct {
	Interface string
	Address   netip.Addr // the server's, of several on the interface; invalid: the only one
	Pool      dhcpd.Range
	Gateway   netip.Addr // invalid: none
	DNS       []netip.Addr
	Domain    string
	Lease     time.Duration
	HTTPPort  uint16
	TLSPort   uint16
	IPXE      map[string]string // by platform: bios, uefi-x86_64, uefi-arm64
	Agent     string            // path of doppel-agent; empty: look for it
	Syncs     []syncConfig
}

// loadConfig reads and checks the configuration. All that is wrong is told at
// once.
func loadConfig(path string) (*config, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &usageError{fmt.Sprintf("there is no configuration %s", path), "make one with: doppel init --interface IF"}
	}
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	c, problems := parseConfig(b)
	if len(problems) > 0 {
		return nil, &usageError{fmt.Sprintf("%s:\n  %s", path, strings.Join(problems, "\n  ")), "correct these places; doppel init --help shows every key"}
	}
	return c, nil
}

// parseConfig turns the file's bytes into a checked config, or says everything
// that is wrong with it, each with its place.
func parseConfig(b []byte) (*config, []string) {
	var f configFile
	dec := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, tomlProblems(err)
	}
	return f.validate()
}

func tomlProblems(err error) []string {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var out []string
		for _, e := range strict.Errors {
			row, col := e.Position()
			out = append(out, fmt.Sprintf("line %d, column %d: unknown key %q", row, col, strings.Join(e.Key(), ".")))
		}
		return out
	}
	var dec *toml.DecodeError
	if errors.As(err, &dec) {
		row, col := dec.Position()
		what := strings.TrimPrefix(dec.Error(), "toml: ")
		if key := strings.Join(dec.Key(), "."); key != "" {
			what = fmt.Sprintf("%s has a value of the wrong type", key)
		}
		return []string{fmt.Sprintf("line %d, column %d: %s", row, col, what)}
	}
	return []string{err.Error()}
}

// validate checks every value, and names each by its key.
func (f *configFile) validate() (*config, []string) {
	c := &config{Interface: f.Network.Interface, Domain: f.Network.Domain, IPXE: f.IPXE, Agent: f.Agent.Path}
	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	addr := func(key, s string) netip.Addr {
		if s == "" {
			return netip.Addr{}
		}
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is4() {
			bad("%s: %q is not an IPv4 address", key, s)
		}
		return a
	}
	if c.Interface == "" {
		bad("network.interface: names no interface")
	}
	c.Address = addr("network.address", f.Network.Address)
	c.Gateway = addr("network.gateway", f.Network.Gateway)
	for _, d := range f.Network.DNS {
		c.DNS = append(c.DNS, addr("network.dns", d))
	}
	var err error
	if c.Pool, err = dhcpd.ParseRange(f.Network.Pool); err != nil {
		bad("network.pool: %v", err)
	}
	c.Lease = 12 * time.Hour
	if f.Network.Lease != "" {
		d, err := time.ParseDuration(f.Network.Lease)
		if err != nil || d < time.Minute {
			bad("network.lease: %q is not a duration of a minute or more, as 12h", f.Network.Lease)
		}
		c.Lease = d
	}
	port := func(key, s string, or uint16) uint16 {
		if s == "" {
			return or
		}
		a, err := netip.ParseAddrPort("0.0.0.0" + s)
		if err != nil || !strings.HasPrefix(s, ":") || a.Port() == 0 {
			bad("%s: %q is not a port, as \":%d\"", key, s, or)
			return or
		}
		return a.Port()
	}
	c.HTTPPort = port("serve.http", f.Serve.HTTP, 8480)
	c.TLSPort = port("serve.tls", f.Serve.TLS, 8443)
	if c.HTTPPort == c.TLSPort {
		bad("serve.http and serve.tls are the same port")
	}
	if c.IPXE == nil {
		c.IPXE = map[string]string{}
	}
	for platform := range c.IPXE {
		if _, ok := defaultIPXE[platform]; !ok {
			bad("ipxe.%s: no such platform; there are bios, uefi-x86_64, uefi-arm64", platform)
		}
	}
	for platform, path := range defaultIPXE {
		if c.IPXE[platform] == "" {
			c.IPXE[platform] = path
		}
	}
	c.Syncs = checkSyncs(f.Sync, bad)
	return c, problems
}

// check holds what is configured against the network that the interface is on.
func (c *config) check(path string, s segment) error {
	subnet := s.Addr.Masked()
	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if p := c.Pool; p.First.IsValid() {
		switch {
		case !subnet.Contains(p.First) || !subnet.Contains(p.Last):
			bad("network.pool: %s is not inside the subnet %s of %s", p, subnet, s.Interface)
		case p.Contains(s.Addr.Addr()):
			bad("network.pool: %s holds this server's own address %s", p, s.Addr.Addr())
		case p.Contains(c.Gateway):
			bad("network.pool: %s holds the gateway %s", p, c.Gateway)
		}
	}
	if c.Gateway.IsValid() && !subnet.Contains(c.Gateway) {
		bad("network.gateway: %s is not inside the subnet %s of %s", c.Gateway, subnet, s.Interface)
	}
	if len(problems) > 0 {
		return &usageError{fmt.Sprintf("%s:\n  %s", path, strings.Join(problems, "\n  ")), "correct these places, or the interface's address"}
	}
	return nil
}

// defaultIPXE is where Debian's package ipxe puts its loaders.
var defaultIPXE = map[string]string{
	"bios":        "/usr/lib/ipxe/undionly.kpxe",
	"uefi-x86_64": "/usr/lib/ipxe/snponly.efi",
	"uefi-arm64":  "/usr/lib/ipxe/ipxe-arm64.efi",
}

// segment is the network that doppel serves: an interface and its address.
type segment struct {
	Interface string
	Addr      netip.Prefix
}

// interfaceAddr finds the IPv4 address of an interface; want chooses among
// several.
func interfaceAddr(name string, want netip.Addr) (segment, error) {
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		return segment{}, &usageError{fmt.Sprintf("there is no interface %q", name), "ip -br link shows the interfaces; name the one that the nodes are connected to"}
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return segment{}, fmt.Errorf("reading the addresses of %s: %w", name, err)
	}
	var found []netip.Prefix
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && (!want.IsValid() || p.Addr() == want) {
			found = append(found, p)
		}
	}
	switch {
	case len(found) == 1:
		return segment{name, found[0]}, nil
	case len(found) == 0 && want.IsValid():
		return segment{}, &usageError{fmt.Sprintf("interface %s does not have the address %s", name, want), "correct network.address, or give the interface that address"}
	case len(found) == 0:
		return segment{}, &usageError{fmt.Sprintf("interface %s has no IPv4 address", name), fmt.Sprintf("give it a fixed one: ip addr add 10.1.0.1/24 dev %s (and in the system's network configuration)", name)}
	}
	return segment{}, &usageError{fmt.Sprintf("interface %s has several IPv4 addresses: %v", name, found), "name the one to serve from as network.address in the configuration"}
}

var configTemplate = template.Must(template.New("doppel.toml").Parse(`# doppel's configuration. Unknown keys are refused.

[network]
interface = {{printf "%q" .Interface}}            # the LAN that nodes boot from; doppel answers nowhere else
pool = "{{.First}}-{{.Last}}"   # addresses for machines not yet assigned, while they are collected
gateway = ""                  # given to nodes that have none of their own
dns = []
domain = "cluster"
lease = "12h"
{{if .Address.IsValid}}address = "{{.Address}}"        # the server's own, where the interface has several
{{end}}
[serve]
http = ":8480"                # sealed images and boot files
tls = ":8443"                 # plans and keys

[ipxe]                        # Debian: package ipxe
bios = "/usr/lib/ipxe/undionly.kpxe"
uefi-x86_64 = "/usr/lib/ipxe/snponly.efi"

[agent]
path = ""                     # of doppel-agent; default: beside doppel, else in PATH

# [[sync]]                    # keeps nodes equal to a head; doppel sync --help shows every key
# image = "head"
# source = "root@head"
# nodes = ["@head"]
`))

// writeConfig writes a first configuration for a segment.
//
// chosen is the server's address when the person chose it among several.
func writeConfig(path string, s segment, chosen netip.Addr) error {
	first, last, err := defaultPool(s.Addr)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err := configTemplate.Execute(&b, map[string]any{"Interface": s.Interface, "First": first, "Last": last, "Address": chosen}); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	if err := renameio.WriteFile(path, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("writing the configuration: %w", err)
	}
	return nil
}

// defaultPool is the last quarter of the subnet, at most 64 addresses, without
// the broadcast address and the server's own.
func defaultPool(p netip.Prefix) (first, last netip.Addr, err error) {
	bits := 32 - p.Bits()
	if bits < 3 {
		return first, last, &usageError{fmt.Sprintf("the subnet %s is too small for a cluster", p.Masked()), "doppel needs a /29 or larger on this interface"}
	}
	size := uint32(1) << min(bits, 31)
	n := min(size/4, 64)
	base := p.Masked().Addr().As4()
	start := uint32(base[0])<<24 | uint32(base[1])<<16 | uint32(base[2])<<8 | uint32(base[3])
	at := func(i uint32) netip.Addr {
		v := start + i
		return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	}
	first, last = at(size-1-n), at(size-2)
	if a := p.Addr(); !a.Less(first) && !last.Less(a) {
		// The server sits in the last quarter: take the second one.
		first, last = at(size/4), at(size/4+n-1)
	}
	return first, last, nil
}
