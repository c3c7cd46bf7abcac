package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"doppel/dhcpd"
	"doppel/imaging"
)

// check is one thing that must hold, and how it stands.
type check struct {
	Name   string `json:"name"`
	Result string `json:"result"` // pass, warn, fail
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
}

func newPreflight(g *globals) *cobra.Command {
	var host string
	var o captureFlags
	c := &cobra.Command{
		Use:   "preflight [--host root@head]",
		Short: "Check everything that must hold, each with its remedy",
		Long: `Preflight checks this machine, its configuration and the network that nodes
boot from, and with --host the head that is to be captured. It changes nothing.
Exit code 4 if a check fails.`,
		Example: `  doppel preflight
  doppel preflight --host root@head`,
		Args:              exactArgs(),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			if host == "" && (o.key != "" || o.knownHosts != "" || o.sshConfig != "" || o.acceptNew || o.sudo) {
				return usagef(argsHint(cmd), "the flags for SSH belong to --host, which is missing")
			}
			checks := preflight(cmd.Context(), g)
			if host != "" {
				checks = append(checks, preflightHost(cmd.Context(), o, host)...)
			}
			return printChecks(cmd.OutOrStdout(), g, checks)
		},
	}
	c.Flags().StringVar(&host, "host", "", "also check the `host` to be captured")
	c.Flags().StringVarP(&o.key, "identity", "i", "", "private key `file` for --host")
	c.Flags().StringVar(&o.knownHosts, "known-hosts", "", "known_hosts `file` for --host")
	c.Flags().StringVar(&o.sshConfig, "ssh-config", "", "ssh_config `file` for --host")
	c.Flags().BoolVar(&o.acceptNew, "accept-new", false, "accept the key of a --host not known yet")
	c.Flags().BoolVar(&o.sudo, "sudo", false, "become root on --host with sudo")
	return c
}

func printChecks(w io.Writer, g *globals, checks []check) error {
	failed := false
	for _, c := range checks {
		failed = failed || c.Result == "fail"
	}
	if g.json {
		if err := printJSON(w, checks); err != nil {
			return err
		}
	} else {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		for _, c := range checks {
			fmt.Fprintf(t, "%s\t%s\t%s\n", c.Result, c.Name, c.Detail)
			if c.Remedy != "" {
				fmt.Fprintf(t, "\t\t→ %s\n", c.Remedy)
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if failed {
		return codeError(exitFound)
	}
	return nil
}

// passOr is a check that passes with detail, or fails with err's words.
func passOr(name, detail string, err error) check {
	if err == nil {
		return check{name, "pass", detail, ""}
	}
	return check{name, "fail", what(err), hint(err)}
}

// minFree is how much room a store should have before the first capture.
const minFree = 10 << 30

func preflight(ctx context.Context, g *globals) []check {
	root := passOr("root", "running as root", nil)
	if os.Geteuid() != 0 {
		root = check{"root", "fail", "not running as root", "doppel serve needs the ports of DHCP and TFTP: use sudo"}
	}
	c, err := loadConfig(g.config)
	checks := []check{root, passOr("configuration", g.config, err), checkState(g.state)}
	if err != nil {
		return checks
	}
	s, err := interfaceAddr(c.Interface, c.Address)
	if err == nil {
		err = c.check(g.config, s)
	}
	checks = append(checks, passOr("interface", fmt.Sprintf("%s has %s", c.Interface, s.Addr), err))
	if err != nil {
		return checks
	}
	for _, platform := range []string{"bios", "uefi-x86_64"} {
		_, err := os.Stat(c.IPXE[platform])
		if err != nil {
			err = &hintError{err, "install Debian's package ipxe, or name the loader in the configuration's [ipxe]"}
		}
		checks = append(checks, passOr("loader "+platform, c.IPXE[platform], err))
	}
	agent, err := findAgent(c.Agent)
	checks = append(checks, passOr("agent", agent, err))
	if daemonRuns(ctx, g) {
		return append(checks, check{"daemon", "pass", "doppel serve is running; its ports and DHCP are its own", ""})
	}
	checks = append(checks, checkPorts(c, s)...)
	return append(checks, checkRivals(ctx, c.Interface))
}

// daemonRuns tells whether doppel serve answers.
func daemonRuns(ctx context.Context, g *globals) bool {
	_, err := g.client().Version(ctx)
	return err == nil
}

func checkState(dir string) check {
	var fs syscall.Statfs_t
	at := dir
	for syscall.Statfs(at, &fs) != nil && at != filepath.Dir(at) {
		at = filepath.Dir(at)
	}
	free := int64(fs.Bavail) * fs.Bsize
	detail := fmt.Sprintf("%s, %s free", dir, bytesText(free))
	if free < minFree {
		return check{"state", "warn", detail, "an image of a head usually takes a third of the head's used space: make room, or set --state"}
	}
	return check{"state", "pass", detail, ""}
}

func checkPorts(c *config, s segment) []check {
	var out []check
	udp := func(name string, port uint16) {
		conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: s.Addr.Addr().AsSlice(), Port: int(port)})
		if err == nil {
			err = conn.Close()
		} else {
			err = &hintError{err, fmt.Sprintf("another server has UDP port %d: ss -lunp 'sport = :%d' names it; stop it", port, port)}
		}
		out = append(out, passOr(fmt.Sprintf("port %s (UDP %d)", name, port), "free", err))
	}
	tcp := func(name string, port uint16) {
		l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: s.Addr.Addr().AsSlice(), Port: int(port)})
		if err == nil {
			err = l.Close()
		} else {
			err = &hintError{err, fmt.Sprintf("another server has TCP port %d: ss -ltnp 'sport = :%d' names it; stop it, or choose another port in the configuration's [serve]", port, port)}
		}
		out = append(out, passOr(fmt.Sprintf("port %s (TCP %d)", name, port), "free", err))
	}
	udp("dhcp", 67)
	udp("tftp", 69)
	tcp("http", c.HTTPPort)
	tcp("tls", c.TLSPort)
	return out
}

// checkRivals looks for another DHCP server on the segment.
func checkRivals(ctx context.Context, iface string) check {
	rivals, err := dhcpd.Probe(ctx, iface)
	if err != nil {
		return passOr("other DHCP servers", "", fmt.Errorf("looking for them: %w", err))
	}
	if len(rivals) > 0 {
		return check{"other DHCP servers", "fail", rivalsText(rivals), "two DHCP servers on a segment take machines from each other: stop that one, or serve on a LAN of its own"}
	}
	return check{"other DHCP servers", "pass", "none answered", ""}
}

// preflightHost checks that a host can be captured.
func preflightHost(ctx context.Context, o captureFlags, name string) []check {
	h, err := reach(ctx, &o, name)
	checks := []check{passOr("host "+name, "logged in", err)}
	if err != nil {
		return checks
	}
	checks = append(checks, checkHost(ctx, h)...)
	if err := h.close(); err != nil {
		checks = append(checks, passOr("leaving the host", "", err))
	}
	return checks
}

// checkHost asks the far end of a capture what it sees.
func checkHost(ctx context.Context, h *host) []check {
	src, err := h.source(ctx)
	checks := []check{passOr("agent on the host", "it runs there as root", err)}
	if err != nil {
		return checks
	}
	facts, layout, err := src.Describe(ctx, "/")
	checks = append(checks, passOr("system", fmt.Sprintf("%s, %s", printable(facts.OSRelease["PRETTY_NAME"]), facts.Arch), err))
	if err == nil {
		checks = append(checks, layoutCheck(facts, layout))
	}
	if err := src.Close(); err != nil {
		checks = append(checks, passOr("ending the agent", "", err))
	}
	return checks
}

func layoutCheck(facts imaging.Facts, layout *imaging.Layout) check {
	if layout == nil {
		return check{"disk layout", "warn", facts.LayoutNote, "doubles get doppel's default layout: one root file system and swap"}
	}
	return check{"disk layout", "pass", fmt.Sprintf("%s with %d partitions", layout.Table, len(layout.Partitions)), ""}
}
