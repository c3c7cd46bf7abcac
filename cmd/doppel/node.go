package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"doppel/cluster"
	"doppel/web"
)

// client talks to the daemon.
func (g *globals) client() *web.Client { return web.NewClient(g.socket()) }

func newNode(g *globals) *cobra.Command {
	c := &cobra.Command{
		Use:   "node",
		Short: "The inventory: add, list, alter and remove nodes",
		RunE:  func(cmd *cobra.Command, args []string) error { return cmd.Help() },
	}
	c.AddCommand(newNodeAdd(g), newNodeLs(g), newNodeShow(g), newNodeSet(g), newNodeRm(g), newNodeExport(g), newNodeImport(g))
	return c
}

// nodeFlags are what describes a node.
type nodeFlags struct {
	ip, gateway, domain, role, image string
	netmask                          int
}

func (f *nodeFlags) add(c *cobra.Command, ipHelp string) {
	c.Flags().StringVar(&f.ip, "ip", "", ipHelp)
	c.Flags().IntVar(&f.netmask, "netmask", 0, "prefix `length` (default: that of the served network)")
	c.Flags().StringVar(&f.gateway, "gateway", "", "default `gateway`; none: --gateway none")
	c.Flags().StringVar(&f.domain, "domain", "", "DNS domain")
	c.Flags().StringVar(&f.role, "role", "", "compute or head")
	c.Flags().StringVar(&f.image, "image", "", "image `REF` to deploy by default")
}

func parseAddr(flag, s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || !a.Is4() {
		return a, usagef("give it as 10.1.0.11", "%s: %q is not an IPv4 address", flag, s)
	}
	return a, nil
}

// node is the flags as a node's description.
func (f *nodeFlags) node() (n cluster.Node, err error) {
	n = cluster.Node{Role: cluster.Role(f.role), Netmask: f.netmask, Domain: f.domain, Image: f.image}
	if n.Role == "" {
		n.Role = cluster.Compute
	}
	if f.gateway != "" && f.gateway != "none" {
		n.Gateway, err = parseAddr("--gateway", f.gateway)
	}
	return n, err
}

func newNodeAdd(g *globals) *cobra.Command {
	var f nodeFlags
	var s cluster.Series
	var dryRun bool
	c := &cobra.Command{
		Use:   "add NAME… --ip FIRST | --base B --count N --start S --pad P --ip FIRST",
		Short: "Add nodes to the inventory",
		Long: `Add puts nodes into the inventory, by their names or as a numbered series, with
addresses that follow each other from --ip. Names and addresses that are taken
are refused, and then nothing is added.`,
		Example: `  doppel node add --base node --count 16 --start 1 --pad 3 --ip 10.1.0.11
  doppel node add standby --ip 10.1.0.2 --role head`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.ip == "" {
				return usagef("doppel node add --help shows examples", "--ip, the first address, is missing")
			}
			first, err := parseAddr("--ip", f.ip)
			if err != nil {
				return err
			}
			shared, err := f.node()
			if err != nil {
				return err
			}
			req := web.AddNodes{Shared: shared, DryRun: dryRun}
			switch {
			case len(args) > 0 && s.Base != "":
				return usagef("doppel node add --help shows examples", "give names, or a series with --base, not both")
			case len(args) > 0:
				for _, name := range args {
					n := shared
					n.Name, n.Addr = name, first
					req.Nodes = append(req.Nodes, n)
					first = first.Next()
				}
			case s.Base != "":
				s.First = first
				req.Series = &s
			default:
				return usagef("doppel node add --help shows examples", "give names, or a series with --base")
			}
			nodes, err := g.client().AddNodes(cmd.Context(), req)
			if err != nil {
				return err
			}
			if dryRun && !g.json {
				fmt.Fprintln(cmd.OutOrStdout(), "would add:")
			}
			return printNodes(cmd.OutOrStdout(), g, nodes)
		},
	}
	f.add(c, "first `address`")
	c.Flags().StringVar(&s.Base, "base", "", "`name` that the series' numbers are put behind")
	c.Flags().IntVar(&s.Count, "count", 1, "how many nodes the series has")
	c.Flags().IntVar(&s.Start, "start", 1, "first number of the series")
	c.Flags().IntVar(&s.Pad, "pad", 0, "digits that numbers have at least")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be added")
	return c
}

// printNodes prints a table of nodes.
func printNodes(w io.Writer, g *globals, nodes []cluster.Node) error {
	if g.json {
		if nodes == nil {
			nodes = []cluster.Node{}
		}
		return printJSON(w, nodes)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tROLE\tADDRESS\tMAC\tSTATE\tRUNS\tNOTE")
	for _, n := range nodes {
		mac := "-"
		if n.MAC != nil {
			mac = n.MAC.String()
		}
		fmt.Fprintf(t, "%s\t%s\t%s/%d\t%s\t%s\t%s\t%s\n", n.Name, n.Role, n.Addr, n.Netmask, mac, n.State, n.Runs, nodeNote(n))
	}
	return t.Flush()
}

// nodeNote is what there is to say of a node besides its state.
func nodeNote(n cluster.Node) string {
	switch {
	case n.State == cluster.Failed:
		return printable(n.Reason)
	case n.State == cluster.Installing && n.Install != nil:
		return stageText(n.Install)
	case n.State == cluster.Armed && n.Install != nil:
		return "for " + n.Install.Image + "; waits for the machine to boot from the network"
	case n.State == cluster.Installed && !n.LastUp.IsZero():
		return "up since " + n.LastUp.Local().Format("2006-01-02 15:04:05")
	}
	return ""
}

// stageText is how far an install is.
func stageText(i *cluster.Install) string {
	s := i.Stage
	if i.Total > 0 {
		s += fmt.Sprintf(" %s of %s", bytesText(i.Done), bytesText(i.Total))
	}
	if i.Detail != "" {
		s += " " + printable(i.Detail)
	}
	return s
}

func newNodeLs(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "ls [NODES]",
		Short:   "List nodes",
		Example: "  doppel node ls\n  doppel node ls 'node[001-016]' @head",
		RunE: func(cmd *cobra.Command, args []string) error {
			nodes, err := g.client().Nodes(cmd.Context(), args...)
			if err != nil {
				return err
			}
			return printNodes(cmd.OutOrStdout(), g, nodes)
		},
	}
}

func newNodeShow(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "show NODE",
		Short:   "Show all that is known of a node",
		Example: "  doppel node show node001",
		Args:    exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := g.client().Node(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), n)
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			row := func(k, v string) {
				if v != "" {
					fmt.Fprintf(t, "%s\t%s\n", k, v)
				}
			}
			row("node", n.Name)
			row("role", string(n.Role))
			row("address", fmt.Sprintf("%s/%d", n.Addr, n.Netmask))
			if n.Gateway.IsValid() {
				row("gateway", n.Gateway.String())
			}
			row("domain", n.Domain)
			if n.MAC != nil {
				row("MAC", n.MAC.String())
			}
			row("state", string(n.State))
			row("note", nodeNote(n))
			row("default image", n.Image)
			row("runs", n.Runs)
			row("kernel", n.Kernel)
			row("disk GUID", n.UpFrom)
			if n.Install != nil {
				row("last install", fmt.Sprintf("%s of %s, armed %s", n.Install.ID, n.Install.Image, n.Install.Armed.Local().Format("2006-01-02 15:04:05")))
			}
			return t.Flush()
		},
	}
}

func newNodeSet(g *globals) *cobra.Command {
	var f nodeFlags
	c := &cobra.Command{
		Use:   "set NODE",
		Short: "Alter what describes a node",
		Long: `Set alters the given flags and leaves the rest as it is. A changed address is in
force with the machine's next DHCP packet; the disk of an installed node has the
old one until it is deployed again.`,
		Example: "  doppel node set node001 --image head@latest",
		Args:    exactArgs("NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := f.changes(cmd, args[0])
			if err != nil {
				return err
			}
			n, err := g.client().SetNode(cmd.Context(), set)
			if err != nil {
				return err
			}
			return printNodes(cmd.OutOrStdout(), g, []cluster.Node{n})
		},
	}
	f.add(c, "`address`")
	return c
}

// changes are the flags that were given.
func (f *nodeFlags) changes(cmd *cobra.Command, name string) (cluster.SetNode, error) {
	set := cluster.SetNode{Name: name}
	given := 0
	for flag, apply := range map[string]func() error{
		"ip": func() error {
			a, err := parseAddr("--ip", f.ip)
			set.Addr = &a
			return err
		},
		"gateway": func() error {
			var a netip.Addr
			var err error
			if f.gateway != "none" {
				a, err = parseAddr("--gateway", f.gateway)
			}
			set.Gateway = &a
			return err
		},
		"netmask": func() error { set.Netmask = &f.netmask; return nil },
		"domain":  func() error { set.Domain = &f.domain; return nil },
		"image":   func() error { set.Image = &f.image; return nil },
		"role": func() error {
			r := cluster.Role(f.role)
			set.Role = &r
			return nil
		},
	} {
		if !cmd.Flags().Changed(flag) {
			continue
		}
		given++
		if err := apply(); err != nil {
			return set, err
		}
	}
	if given == 0 {
		return set, usagef("doppel node set --help lists the flags", "nothing to alter was given")
	}
	return set, nil
}

func newNodeRm(g *globals) *cobra.Command {
	var yes, dryRun bool
	c := &cobra.Command{
		Use:     "rm NODES",
		Short:   "Remove nodes from the inventory (their disks are left as they are)",
		Example: "  doppel node rm 'node[009-016]'",
		Args:    someArgs("NODES"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			nodes, err := g.client().RemoveNodes(ctx, web.Named{Nodes: args, DryRun: true})
			if err != nil {
				return err
			}
			if dryRun {
				return printNodes(cmd.OutOrStdout(), g, nodes)
			}
			if err := confirm(yes, "remove "+nodeNames(nodes)+"?"); err != nil {
				return err
			}
			nodes, err = g.client().RemoveNodes(ctx, web.Named{Nodes: args})
			if err != nil {
				return err
			}
			return printDone(cmd.OutOrStdout(), g, "removed", nodes)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be removed")
	return c
}

func nodeNames(nodes []cluster.Node) string {
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return strings.Join(names, ", ")
}

// printDone says what was done to which nodes.
func printDone(w io.Writer, g *globals, did string, nodes []cluster.Node) error {
	if g.json {
		return printNodes(w, g, nodes)
	}
	_, err := fmt.Fprintf(w, "%s %s\n", did, nodeNames(nodes))
	return err
}

func newNodeExport(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "export [FILE]",
		Short:   "Write the inventory out as JSON that people can edit",
		Example: "  doppel node export nodes.json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			inv, err := g.client().Export(cmd.Context())
			if err != nil {
				return err
			}
			b, err := inv.Bytes()
			if err != nil {
				return err
			}
			if len(args) == 0 {
				_, err = cmd.OutOrStdout().Write(b)
				return err
			}
			return renameio.WriteFile(args[0], b, 0o644)
		},
	}
}

func newNodeImport(g *globals) *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:     "import FILE",
		Short:   "Add the nodes of an exported inventory, all or none",
		Example: "  doppel node import nodes.json --dry-run",
		Args:    exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			inv, err := cluster.ParseInventory(b)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			nodes, err := g.client().Import(cmd.Context(), web.Import{Inventory: inv, DryRun: dryRun})
			if err != nil {
				return err
			}
			return printNodes(cmd.OutOrStdout(), g, nodes)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be added")
	return c
}
