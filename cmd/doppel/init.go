package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

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
		Example: `  doppel init --interface eth1
  doppel init --interface eth1 --address 10.1.0.1   # of several`,
		Args:              exactArgs(),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			if iface == "" {
				return usagef("ip -br link shows the interfaces; name the one that the nodes are connected to", "--interface is missing")
			}
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
	c.Flags().StringVar(&address, "address", "", "which `address` of the interface to serve from")
	_ = c.RegisterFlagCompletionFunc("interface", completeInterface)
	return c
}

// completeInterface completes names of interfaces.
func completeInterface(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return beginning(names, word), cobra.ShellCompDirectiveNoFileComp
}

// initDone is the JSON of init.
type initDone struct {
	Config    string       `json:"config"`
	Kept      bool         `json:"kept"` // the configuration was there already
	State     string       `json:"state"`
	Interface string       `json:"interface"`
	Address   netip.Prefix `json:"address"`
}

func runInit(ctx context.Context, g *globals, iface string, want netip.Addr, out io.Writer) error {
	done := initDone{Config: g.config, State: g.state, Interface: iface}
	c, err := loadConfig(g.config)
	_, statErr := os.Stat(g.config)
	switch {
	case errors.Is(statErr, fs.ErrNotExist): // it is to be written
	case err != nil:
		return err
	case c.Interface != iface:
		return usagef(fmt.Sprintf("edit network.interface in %s, or move the file away", g.config),
			"%s is for interface %s already", g.config, c.Interface)
	case want.IsValid() && c.Address.IsValid() && c.Address != want:
		return usagef(fmt.Sprintf("edit network.address in %s, or move the file away", g.config),
			"%s is for the address %s already", g.config, c.Address)
	default:
		done.Kept = true
		if c.Address.IsValid() {
			want = c.Address
		}
	}
	s, err := interfaceAddr(iface, want)
	if err != nil {
		return err
	}
	if done.Address = s.Addr; done.Kept {
		err = c.check(g.config, s)
	} else {
		err = writeConfig(g.config, s, want)
	}
	if err != nil {
		return err
	}
	catalog, err := g.catalog()
	if err != nil {
		return err
	}
	if err := catalog.Create(ctx); err != nil {
		return err
	}
	if _, err := web.OpenCA(g.keysDir(), []string{s.Addr.Addr().String()}); err != nil {
		return err
	}
	if g.json {
		return printJSON(out, done)
	}
	kept := ""
	if done.Kept {
		kept = " (kept as it is)"
	}
	_, err = fmt.Fprintf(out, "configuration  %s%s\nstate          %s\nserves         %s on %s\n\nnext: doppel preflight, then doppel serve\n",
		g.config, kept, g.state, s.Addr, s.Interface)
	return err
}
