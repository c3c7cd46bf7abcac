package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

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
		Long: `NODES names nodes: names, n[001-016,20] for ranges, @compute or @head for a role,
@image:REF for those of an image, or all.`,
		Example: `  doppel node add --base node --count 16 --start 1 --pad 3 --ip 10.1.0.11
  doppel node ls @compute`,
	}
	c.AddCommand(newNodeAdd(g), newNodeEnlist(g), newNodeLs(g), newNodeShow(g), newNodeSet(g), newNodeRm(g), newNodeExport(g), newNodeImport(g))
	group(c)
	return c
}

// nodeFlags are what describes a node.
type nodeFlags struct {
	ip, gateway, domain, role, image string
	netmask                          int
}

func (f *nodeFlags) add(g *globals, c *cobra.Command, ipHelp string) {
	c.Flags().StringVar(&f.ip, "ip", "", ipHelp)
	c.Flags().IntVar(&f.netmask, "netmask", 0, "prefix `length` (default: that of the served network)")
	c.Flags().StringVar(&f.gateway, "gateway", "", "`address` of the default gateway, or none")
	c.Flags().StringVar(&f.domain, "domain", "", "DNS `domain`")
	c.Flags().StringVar(&f.role, "role", "", "`role`: compute or head (default: compute)")
	c.Flags().StringVar(&f.image, "image", "", "image `REF` to deploy by default")
	_ = c.RegisterFlagCompletionFunc("role", oneOf(string(cluster.Compute), string(cluster.Head)))
	_ = c.RegisterFlagCompletionFunc("image", g.completeRef)
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
  doppel node add 'node[017-020]' --ip 10.1.0.27 --image head@latest --dry-run
  doppel node add standby --ip 10.1.0.2 --role head`,
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			req, err := f.toAdd(cmd, args, s)
			if err != nil {
				return err
			}
			req.DryRun = dryRun
			nodes, err := g.client().AddNodes(cmd.Context(), req)
			if err != nil {
				return err
			}
			return printAdded(cmd.OutOrStdout(), g, dryRun, nodes)
		},
	}
	f.add(g, c, "first `address`")
	c.Flags().StringVar(&s.Base, "base", "", "`name` that the series' numbers are put behind")
	c.Flags().IntVar(&s.Count, "count", 1, "how many nodes the series has")
	c.Flags().IntVar(&s.Start, "start", 1, "first number of the series")
	c.Flags().IntVar(&s.Pad, "pad", 0, "digits that numbers have at least")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be added")
	return c
}

// toAdd makes of flags and names what the daemon is asked for.
func (f *nodeFlags) toAdd(cmd *cobra.Command, names []string, s cluster.Series) (web.AddNodes, error) {
	var req web.AddNodes
	wrong := func(format string, args ...any) (web.AddNodes, error) {
		return req, usagef(argsHint(cmd), format, args...)
	}
	if f.ip == "" {
		return wrong("--ip, the first address, is missing")
	}
	first, err := parseAddr("--ip", f.ip)
	if err != nil {
		return req, err
	}
	if req.Shared, err = f.node(); err != nil {
		return req, err
	}
	if s.Base != "" {
		if len(names) > 0 {
			return wrong("give names, or a series with --base, not both")
		}
		s.First = first
		req.Series = &s
		return req, nil
	}
	if len(names) == 0 {
		return wrong("give names, or a series with --base")
	}
	for _, flag := range []string{"count", "start", "pad"} {
		if cmd.Flags().Changed(flag) {
			return wrong("--%s belongs to a series, and there is no --base", flag)
		}
	}
	for _, x := range names {
		expanded, err := cluster.ExpandNames(x)
		if err != nil {
			return req, &usageError{what(err), hint(err)}
		}
		for _, name := range expanded {
			n := req.Shared
			n.Name, n.Addr = name, first
			req.Nodes = append(req.Nodes, n)
			first = first.Next()
		}
	}
	return req, nil
}

// printAdded says what was added, or would be.
func printAdded(w io.Writer, g *globals, dryRun bool, nodes []cluster.Node) error {
	if !g.json {
		did := "added:"
		if dryRun {
			did = "would add:"
		}
		if _, err := fmt.Fprintln(w, did); err != nil {
			return err
		}
	}
	return printNodes(w, g, nodes)
}

// printNodes prints a table of nodes.
func printNodes(w io.Writer, g *globals, nodes []cluster.Node) error {
	if g.json {
		if nodes == nil {
			nodes = []cluster.Node{}
		}
		return printJSON(w, nodes)
	}
	if len(nodes) == 0 {
		_, err := fmt.Fprintln(w, "no nodes yet: doppel node add makes them")
		return err
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
		return stageText(n.Install.Stage, n.Install.Detail, n.Install.Done, n.Install.Total)
	case n.Update.Pending() && n.Update.Begun.IsZero():
		return "to become " + n.Update.Image + " in place, when it is heard from"
	case n.Update.Pending():
		return "becomes " + n.Update.Image + " in place: " + stageText(n.Update.Stage, n.Update.Detail, n.Update.Done, n.Update.Total)
	case n.Update != nil && n.Update.Failed != "":
		return "did not become " + n.Update.Image + ": " + printable(n.Update.Failed)
	case n.State == cluster.Armed && n.Install != nil:
		return "for " + n.Install.Image + "; waits for the machine to boot from the network"
	case n.State == cluster.Installed && !n.LastUp.IsZero():
		return "up since " + n.LastUp.Local().Format(time.DateTime)
	}
	return ""
}

// stageText is how far an install or an update is.
func stageText(stage, detail string, done, total int64) string {
	if total > 0 {
		stage += fmt.Sprintf(" %s of %s", bytesText(done), bytesText(total))
	}
	if detail != "" {
		stage += " " + printable(detail)
	}
	return stage
}

func newNodeLs(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:               "ls [NODES]",
		Short:             "List nodes",
		Example:           "  doppel node ls\n  doppel node ls 'node[001-016]' @head",
		ValidArgsFunction: complete(true, g.completeNode),
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
		Use:               "show NODE",
		Short:             "Show all that is known of a node",
		Example:           "  doppel node show node001",
		Args:              exactArgs("NODE"),
		ValidArgsFunction: complete(false, g.completeNode),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := g.client().Node(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if g.json {
				return printJSON(cmd.OutOrStdout(), n)
			}
			return printNode(cmd.OutOrStdout(), n)
		},
	}
}

// printNode prints all that is known of a node.
func printNode(w io.Writer, n cluster.Node) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
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
	if n.Held {
		row("follows", "no: doppel sync resume --node "+n.Name)
	}
	row("kernel", printable(n.Kernel))
	row("disk GUID", printable(n.UpFrom))
	if n.Install != nil {
		row("last install", fmt.Sprintf("%s of %s, armed %s", n.Install.ID, n.Install.Image, n.Install.Armed.Local().Format(time.DateTime)))
	}
	if u := n.Update; u != nil {
		row("last update", fmt.Sprintf("to %s, ordered %s", u.Image, u.Ordered.Local().Format(time.DateTime)))
		row("", u.Result)
	}
	return t.Flush()
}

func newNodeSet(g *globals) *cobra.Command {
	var f nodeFlags
	c := &cobra.Command{
		Use:   "set NODE",
		Short: "Alter what describes a node",
		Long: `Set alters the given flags and leaves the rest as it is. A changed address is in
force with the machine's next DHCP packet; the disk of an installed node has the
old one until it is deployed again.`,
		Example: `  doppel node set node001 --image head@latest
  doppel node set node001 --ip 10.1.0.40 --gateway none`,
		Args:              exactArgs("NODE"),
		ValidArgsFunction: complete(false, g.completeNode),
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
	f.add(g, c, "`address`")
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
		return set, usagef(argsHint(cmd), "nothing to alter was given")
	}
	return set, nil
}

func newNodeRm(g *globals) *cobra.Command {
	var yes, dryRun bool
	c := &cobra.Command{
		Use:               "rm NODES",
		Short:             "Remove nodes from the inventory (their disks are left as they are)",
		Example:           "  doppel node rm 'node[009-016]'",
		Args:              someArgs("NODES"),
		ValidArgsFunction: complete(true, g.completeNode),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			nodes, err := g.client().RemoveNodes(ctx, web.Named{Nodes: args, DryRun: true})
			if err != nil {
				return err
			}
			if dryRun {
				return printNodes(cmd.OutOrStdout(), g, nodes)
			}
			if err := confirm(ctx, yes, "remove "+nodeNames(nodes)+"?"); err != nil {
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
		Use:   "export [FILE]",
		Short: "Write the inventory out as JSON that people can edit",
		Long: `Export writes all nodes with what describes them and their machines to FILE, or
prints them.`,
		Example:           "  doppel node export nodes.json",
		Args:              rangeArgs(0, "FILE"),
		ValidArgsFunction: complete(false, completeFile),
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
			if err := renameio.WriteFile(args[0], b, 0o644); err != nil {
				return fmt.Errorf("writing the inventory: %w", err)
			}
			return nil
		},
	}
}

func newNodeImport(g *globals) *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:               "import FILE",
		Short:             "Add the nodes of an exported inventory, all or none",
		Example:           "  doppel node import nodes.json --dry-run",
		Args:              exactArgs("FILE"),
		ValidArgsFunction: complete(false, completeFile),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return &usageError{err.Error(), "give a file that doppel node export wrote"}
			}
			inv, err := cluster.ParseInventory(b)
			if err != nil {
				return usagef("give a file that doppel node export wrote", "%s: %v", args[0], err)
			}
			nodes, err := g.client().Import(cmd.Context(), web.Import{Inventory: inv, DryRun: dryRun})
			if err != nil {
				return err
			}
			return printAdded(cmd.OutOrStdout(), g, dryRun, nodes)
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only print what would be added")
	return c
}
