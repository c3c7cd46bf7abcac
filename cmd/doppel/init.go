package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"doppel/imaging"
	"doppel/web"
)

func newInit(g *globals) *cobra.Command {
	var iface string
	var address string
	c := &cobra.Command{
		Use:   "init --interface IF",
		Short: "Set doppel up on this machine: configuration, keys, directories",
		Long: `Init writes a first configuration for the network that nodes boot from, and
makes the state directory with its keys. It is safe to repeat: what is there
stays as it is. The configuration's keys:

  [network] interface, address, pool, gateway, dns, domain, lease
  [serve]   http, tls
  [ipxe]    bios, uefi-x86_64, uefi-arm64
  [agent]   path`,
		Example: "  doppel init --interface eth1",
		Args:    exactArgs(),
		RunE: func(cmd *cobra.Command, args []string) error {
			var want netip.Addr
			if address != "" {
				a, err := netip.ParseAddr(address)
				if err != nil {
					return usagef("give an IPv4 address of the interface", "--address: %q is not an address", address)
				}
				want = a
			}
			return runInit(cmd.Context(), g, iface, want, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&iface, "interface", "", "the `interface` to the network that nodes boot from")
	c.Flags().StringVar(&address, "address", "", "which of the interface's addresses to serve from")
	_ = c.MarkFlagRequired("interface")
	return c
}

func runInit(ctx context.Context, g *globals, iface string, want netip.Addr, out io.Writer) error {
	s, err := interfaceAddr(iface, want)
	if err != nil {
		return err
	}
	switch c, err := loadConfig(g.config); {
	case err == nil && c.Interface != iface:
		return usagef(fmt.Sprintf("edit network.interface in %s, or move the file away", g.config),
			"%s is for interface %s already", g.config, c.Interface)
	case err == nil:
		fmt.Fprintf(out, "configuration  %s (kept as it is)\n", g.config)
	default:
		if _, statErr := os.Stat(g.config); !errors.Is(statErr, fs.ErrNotExist) {
			return err // it is there, and wrong
		}
		if err := writeConfig(g.config, s, want); err != nil {
			return err
		}
		fmt.Fprintf(out, "configuration  %s\n", g.config)
	}
	catalog, err := imaging.OpenCatalog(g.state, imaging.CatalogOptions{Log: newLog(os.Stderr)})
	if err != nil {
		return err
	}
	if err := catalog.Create(ctx); err != nil {
		return err
	}
	if _, err := web.OpenCA(g.keysDir(), []string{s.Addr.Addr().String()}); err != nil {
		return err
	}
	fmt.Fprintf(out, "state          %s\n", g.state)
	fmt.Fprintf(out, "serves         %s on %s\n", s.Addr, s.Interface)
	fmt.Fprintf(out, "\nnext: doppel preflight, then doppel serve\n")
	return nil
}
