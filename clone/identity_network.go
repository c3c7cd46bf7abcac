package clone

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"strings"
)

// nicName is what the node's NIC is called where a configuration needs a name.
// It is none that the kernel or udev would give to another NIC.
const nicName = "lan0"

// network writes the plan's address in the style the image is set up with,
// bound to the MAC address of the node's NIC. The head's own configuration of
// its NICs goes: on a double it would bring up the head's address a second
// time.
func (w *identity) network() error {
	style := w.image.Boot.Network
	var err error
	switch style {
	case "netplan":
		err = w.netplan()
	case "networkmanager":
		err = w.networkManager()
	case "ifupdown":
		err = w.ifupdown()
	case "systemd-networkd":
		err = w.networkd(false)
	case "":
		// The head was set up by none of them. systemd brings networkd.
		if !w.exists("usr/lib/systemd/systemd-networkd") && !w.exists("lib/systemd/systemd-networkd") {
			return errors.New("the image has none of netplan, NetworkManager, systemd-networkd and ifupdown to give the node its address with (install one on the head and capture it again)")
		}
		err = w.networkd(true)
	default:
		return fmt.Errorf("the image's network configuration is of a style that is not known: %q", style)
	}
	if err != nil {
		return err
	}
	if style == "netplan" || style == "networkmanager" {
		return nil // they tell the resolver themselves
	}
	return w.resolvConf()
}

// ifupdown knows interfaces by name alone, so a systemd.link(5) gives the NIC
// with the node's MAC address a name of ours first. Type=ether keeps bridges
// and VLANs out, which carry the address of the NIC below them.
func (w *identity) ifupdown() error {
	p := w.plan
	link := fmt.Sprintf("# Written by doppel for %s.\n[Match]\nMACAddress=%s\nType=ether\n\n[Link]\nName=%s\n", p.Node, p.MAC, nicName)
	if err := w.write("etc/systemd/network/10-doppel.link", []byte(link), 0o644); err != nil {
		return err
	}
	family := "inet"
	if p.Addr.Addr().Is6() {
		family = "inet6"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by doppel for %s. interfaces.d is the head's and is not read.\n", p.Node)
	fmt.Fprintf(&b, "auto lo\niface lo inet loopback\n\nauto %s\niface %s %s static\n    address %s\n", nicName, nicName, family, p.Addr)
	if p.Gateway.IsValid() {
		fmt.Fprintf(&b, "    gateway %s\n", p.Gateway)
	}
	if len(p.DNS) > 0 {
		fmt.Fprintf(&b, "    dns-nameservers %s\n", joinAddrs(p.DNS, " "))
	}
	if p.Domain != "" {
		fmt.Fprintf(&b, "    dns-search %s\n", p.Domain)
	}
	return w.write("etc/network/interfaces", []byte(b.String()), 0o644)
}

// networkManager keeps connections in keyfiles, which it refuses unless they
// are root's alone.
func (w *identity) networkManager() error {
	if err := w.removeFiles("etc/NetworkManager/system-connections", func(string) bool { return true }); err != nil {
		return err
	}
	// Red Hat's older form of the same.
	err := w.removeFiles("etc/sysconfig/network-scripts", func(n string) bool {
		return strings.HasPrefix(n, "ifcfg-") && n != "ifcfg-lo"
	})
	if err != nil {
		return err
	}
	p := w.plan
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by doppel for %s.\n[connection]\nid=doppel\nuuid=%s\ntype=ethernet\nautoconnect-priority=100\n\n", p.Node, deriveUUID(p.ID, "connection"))
	fmt.Fprintf(&b, "[ethernet]\nmac-address=%s\n\n", strings.ToUpper(p.MAC))
	own, other := "ipv4", "ipv6"
	if p.Addr.Addr().Is6() {
		own, other = other, own
	}
	fmt.Fprintf(&b, "[%s]\nmethod=manual\naddresses=%s\n", own, p.Addr)
	if p.Gateway.IsValid() {
		fmt.Fprintf(&b, "gateway=%s\n", p.Gateway)
	}
	if len(p.DNS) > 0 {
		fmt.Fprintf(&b, "dns=%s;\n", joinAddrs(p.DNS, ";"))
	}
	if p.Domain != "" {
		fmt.Fprintf(&b, "dns-search=%s;\n", p.Domain)
	}
	fmt.Fprintf(&b, "\n[%s]\nmethod=auto\n", other)
	return w.write("etc/NetworkManager/system-connections/doppel.nmconnection", []byte(b.String()), 0o600)
}

// networkd takes the first file, in the order of names, that matches a NIC.
// Files of the head that hold no address, such as those that ask for DHCP on
// every NIC, are left for the node's other NICs.
func (w *identity) networkd(enable bool) error {
	const dir = "etc/systemd/network"
	err := w.removeFiles(dir, func(name string) bool {
		if !strings.HasSuffix(name, ".network") {
			return false
		}
		b, err := w.read(path.Join(dir, name))
		return err != nil || hasStaticAddress(b)
	})
	if err != nil {
		return err
	}
	p := w.plan
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by doppel for %s.\n[Match]\nMACAddress=%s\nType=ether\n\n[Network]\nAddress=%s\n", p.Node, p.MAC, p.Addr)
	if p.Gateway.IsValid() {
		fmt.Fprintf(&b, "Gateway=%s\n", p.Gateway)
	}
	for _, d := range p.DNS {
		fmt.Fprintf(&b, "DNS=%s\n", d)
	}
	if p.Domain != "" {
		fmt.Fprintf(&b, "Domains=%s\n", p.Domain)
	}
	if err := w.write(dir+"/00-doppel.network", []byte(b.String()), 0o644); err != nil || !enable {
		return err
	}
	return w.enable("systemd-networkd.service", "multi-user.target")
}

// hasStaticAddress tells whether a systemd.network(5) gives an address or a
// route that belongs to one machine.
func hasStaticAddress(b []byte) bool {
	for line := range strings.Lines(string(b)) {
		key, _, ok := strings.Cut(strings.TrimSpace(line), "=")
		if key = strings.TrimSpace(key); ok && (key == "Address" || key == "Gateway") {
			return true
		}
	}
	return false
}

// netplan merges all its files, so the head's go as a whole. cloud-init would
// write one of its own where it is installed.
func (w *identity) netplan() error {
	renderer := ""
	for _, name := range w.list("etc/netplan") {
		b, err := w.read(path.Join("etc/netplan", name))
		if err != nil {
			return err
		}
		if r := netplanRenderer(b); r != "" {
			renderer = r
		}
	}
	if err := w.removeFiles("etc/netplan", func(n string) bool { return strings.HasSuffix(n, ".yaml") }); err != nil {
		return err
	}
	if w.exists("etc/cloud/cloud.cfg.d") {
		if err := w.write("etc/cloud/cloud.cfg.d/99-doppel-network.cfg", []byte("network: {config: disabled}\n"), 0o644); err != nil {
			return err
		}
	}
	p := w.plan
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by doppel for %s.\nnetwork:\n  version: 2\n", p.Node)
	if renderer != "" {
		fmt.Fprintf(&b, "  renderer: %s\n", renderer)
	}
	fmt.Fprintf(&b, "  ethernets:\n    %s:\n      match:\n        macaddress: %q\n      set-name: %s\n      addresses:\n        - %q\n", nicName, p.MAC, nicName, p.Addr)
	if p.Gateway.IsValid() {
		to := "0.0.0.0/0" // older than "default", and means the same
		if p.Gateway.Is6() {
			to = "::/0"
		}
		fmt.Fprintf(&b, "      routes:\n        - to: %q\n          via: %q\n", to, p.Gateway)
	}
	if len(p.DNS) > 0 || p.Domain != "" {
		b.WriteString("      nameservers:\n")
		if len(p.DNS) > 0 {
			fmt.Fprintf(&b, "        addresses: [\"%s\"]\n", joinAddrs(p.DNS, `", "`))
		}
		if p.Domain != "" {
			fmt.Fprintf(&b, "        search: [%q]\n", p.Domain)
		}
	}
	return w.write("etc/netplan/00-doppel.yaml", []byte(b.String()), 0o600)
}

// netplanRenderer finds which daemon the head's netplan drives.
func netplanRenderer(b []byte) string {
	for line := range strings.Lines(string(b)) {
		value, ok := strings.CutPrefix(strings.TrimSpace(line), "renderer:")
		if !ok {
			continue
		}
		switch v := strings.Trim(strings.TrimSpace(value), `"'`); v {
		case "NetworkManager", "networkd":
			return v
		}
	}
	return ""
}

// resolvConf is only written for a node that was given name servers, and never
// over a link, which says that some daemon keeps it.
func (w *identity) resolvConf() error {
	if len(w.plan.DNS) == 0 {
		return nil
	}
	fi, err := w.tree.Lstat("etc/resolv.conf")
	if err == nil && !fi.Mode().IsRegular() {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at etc/resolv.conf of the node: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Written by doppel for %s.\n", w.plan.Node)
	if w.plan.Domain != "" {
		fmt.Fprintf(&b, "search %s\n", w.plan.Domain)
	}
	for _, d := range w.plan.DNS {
		fmt.Fprintf(&b, "nameserver %s\n", d)
	}
	return w.write("etc/resolv.conf", []byte(b.String()), 0o644)
}

// enable does what systemctl enable does to a unit of the system.
func (w *identity) enable(unit, target string) error {
	dir := "etc/systemd/system/" + target + ".wants"
	if err := mkdirBeneath(w.tree, dir, 0o755); err != nil {
		return fmt.Errorf("enable %s on the node: %w", unit, err)
	}
	from := "/lib/systemd/system/" + unit
	if w.exists("etc/systemd/system/" + unit) {
		from = "/etc/systemd/system/" + unit
	}
	link := path.Join(dir, unit)
	if err := w.tree.RemoveAll(link); err != nil {
		return fmt.Errorf("enable %s on the node: %w", unit, err)
	}
	if err := w.tree.Symlink(from, link); err != nil {
		return fmt.Errorf("enable %s on the node: %w", unit, err)
	}
	return nil
}

// list names what is directly in a directory; nothing when there is none.
func (w *identity) list(dir string) []string {
	f, err := w.tree.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil
	}
	return names
}

func joinAddrs(addrs []netip.Addr, sep string) string {
	s := make([]string, len(addrs))
	for i, a := range addrs {
		s[i] = a.String()
	}
	return strings.Join(s, sep)
}
