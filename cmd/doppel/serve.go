package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"doppel/clone"
	"doppel/cluster"
	"doppel/dhcpd"
	"doppel/imaging"
	"doppel/imaging/store"
	"doppel/pxe"
	"doppel/tftpd"
	"doppel/web"
)

func newServe(g *globals) *cobra.Command {
	var verbose, besideOthers bool
	c := &cobra.Command{
		Use:   "serve",
		Short: "The daemon: DHCP, TFTP, boot files, plans and keys",
		Long: `Serve answers the machines on the configured interface, and nowhere else, until
it is interrupted. It looks for another DHCP server on the segment before it
answers anyone, and does not start if it finds one, unless --beside-others says
that it is known and leaves the machines of this cluster alone.`,
		Example: `  doppel serve
  doppel serve -v 2>&1 | tee /var/log/doppel.log`,
		Args:              exactArgs(),
		ValidArgsFunction: completeNothing,
		RunE: func(cmd *cobra.Command, args []string) error {
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
			return runServe(cmd.Context(), g, log, besideOthers)
		},
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "log every packet and request")
	c.Flags().BoolVar(&besideOthers, "beside-others", false, "serve although another DHCP server answers on the segment")
	return c
}

// daemon is everything that serves.
type daemon struct {
	g       *globals
	config  *config
	segment segment
	log     *slog.Logger
	cluster *cluster.Cluster
	catalog *imaging.Catalog
	store   *store.Dir
	keys    store.Keys
	ca      *web.CA
	loaders pxe.Loaders
	agent   string
	agents  *web.AgentFile // the same, for nodes that run
	syncer  *syncer

	machines *web.Machines // from when it serves
}

// runServe opens everything before it serves anything, and serves until ctx
// ends or one of the servers fails.
func runServe(ctx context.Context, g *globals, log *slog.Logger, besideOthers bool) (err error) {
	d := &daemon{g: g, log: log}
	if err := d.open(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.cluster.Close()) }()
	if err := d.lookForRivals(ctx, besideOthers); err != nil {
		return err
	}
	s, err := d.listen(ctx)
	if err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	d.serve(ctx, group, s)
	log.Info("serving", "interface", d.segment.Interface, "address", d.segment.Addr.String(), "state", g.state, "version", version)
	err = group.Wait()
	log.Info("stopped")
	return err
}

// open reads the configuration and opens the state.
func (d *daemon) open(ctx context.Context) error {
	var err error
	if d.config, err = loadConfig(d.g.config); err != nil {
		return err
	}
	if d.segment, err = interfaceAddr(d.config.Interface, d.config.Address); err != nil {
		return err
	}
	if err = d.config.check(d.g.config, d.segment); err != nil {
		return err
	}
	if d.agent, err = findAgent(d.config.Agent); err != nil {
		return err
	}
	if d.agents, err = openAgent(d.agent); err != nil {
		return err
	}
	d.loaders = loaders(d.config.IPXE)
	if len(d.loaders) == 0 {
		return &hintError{errors.New("none of the configured iPXE loaders is there"), "install Debian's package ipxe, or correct [ipxe] in the configuration"}
	}
	if d.catalog, err = d.openCatalog(); err != nil {
		return err
	}
	if err := d.catalog.Create(ctx); err != nil {
		return err
	}
	if d.store, err = d.catalog.Store(); err != nil {
		return err
	}
	if d.keys, err = d.catalog.Keys(); err != nil {
		return err
	}
	d.cluster, err = cluster.Open(filepath.Join(d.g.state, "cluster.db"), cluster.Options{
		Network: d.segment.Addr.Masked(), Server: d.segment.Addr.Addr(),
		PoolFirst: d.config.Pool.First, PoolLast: d.config.Pool.Last, Log: d.log,
	})
	if errors.Is(err, cluster.ErrLocked) {
		return &hintError{fmt.Errorf("another doppel serve owns %s", d.g.state), "doppel status talks to it; stop it before you start another"}
	}
	if err != nil {
		return err
	}
	// Only now: a daemon that may not run must not renew the certificate of
	// the one that does.
	if d.ca, err = web.OpenCA(d.g.keysDir(), []string{d.segment.Addr.Addr().String()}); err != nil {
		return errors.Join(err, d.cluster.Close())
	}
	return nil
}

// openCatalog opens the images. What nodes read is not deleted under them.
func (d *daemon) openCatalog() (*imaging.Catalog, error) {
	return imaging.OpenCatalog(d.g.state, imaging.CatalogOptions{
		Log:     d.log,
		Readers: func(context.Context) (string, error) { return readersAmong(d.cluster.Nodes()), nil },
	})
}

func rivalsText(rivals []dhcpd.Rival) string {
	var out []string
	for _, r := range rivals {
		out = append(out, r.String())
	}
	return strings.Join(out, "; ")
}

// openAgent opens the agent for nodes to fetch, for as long as this process runs:
// one that is installed in its place belongs to the daemon that is started next.
func openAgent(path string) (*web.AgentFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the agent: %w", err)
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the agent: %w", err), f.Close())
	}
	a := &web.AgentFile{Size: n, Content: f}
	h.Sum(a.Digest[:0])
	return a, nil
}

// lookForRivals refuses to be the second DHCP server of the segment, unless the
// operator knows of the first.
func (d *daemon) lookForRivals(ctx context.Context, known bool) error {
	rivals, err := dhcpd.Probe(ctx, d.segment.Interface)
	if err != nil {
		return fmt.Errorf("looking for other DHCP servers on %s: %w", d.segment.Interface, err)
	}
	if len(rivals) == 0 {
		return nil
	}
	if known {
		d.log.Warn("another DHCP server answers on the segment", "interface", d.segment.Interface, "servers", rivalsText(rivals))
		return nil
	}
	return &hintError{fmt.Errorf("there is another DHCP server on %s: %s", d.segment.Interface, rivalsText(rivals)),
		"two would take machines from each other: stop that one, serve on a LAN of its own, or, if it leaves this cluster's machines alone, add --beside-others"}
}

func (d *daemon) httpAddr() netip.AddrPort {
	return netip.AddrPortFrom(d.segment.Addr.Addr(), d.config.HTTPPort)
}

func (d *daemon) tlsAddr() netip.AddrPort {
	return netip.AddrPortFrom(d.segment.Addr.Addr(), d.config.TLSPort)
}

// serveBoot starts DHCP and TFTP.
func (d *daemon) serveBoot(ctx context.Context, group *errgroup.Group, s *sockets) {
	server := &dhcpd.Server{
		Config: dhcpd.Config{
			ServerAddr: d.segment.Addr.Addr(),
			Subnet:     dhcpd.Subnet{Prefix: d.segment.Addr.Masked(), Pool: d.config.Pool, Gateway: d.config.Gateway, DNS: d.config.DNS, Domain: d.config.Domain},
			LeaseTime:  d.config.Lease,
		},
		Handler: &pxe.Policy{State: d.cluster, Loaders: d.loaders, Server: d.httpAddr()},
		Leases:  leases{d.cluster}, Log: d.log.With("server", "dhcp"),
	}
	group.Go(func() error { return named("DHCP", server.Serve(ctx, s.dhcp)) })
	boot := &tftpd.Server{Lookup: s.files.Lookup, Log: d.log.With("server", "tftp")}
	group.Go(func() error { return named("TFTP", boot.Serve(ctx, s.tftp)) })
}

func named(server string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("serving %s: %w", server, err)
}

// doors are the HTTP servers.
func (d *daemon) doors(ctx context.Context, s *sockets) []web.Door {
	boot := &pxe.Handler{
		State:      d.cluster,
		Installers: &installers{catalog: d.catalog, agent: d.agent, ca: d.ca.PEM(), dir: d.bootCache()},
		Loaders:    d.loaders, Dir: d.bootCache(), HTTP: d.httpAddr(), TLS: d.tlsAddr(), Log: d.log.With("server", "boot"),
	}
	machines := &web.Machines{
		Cluster: d.cluster, CA: d.ca, Images: &images{catalog: d.catalog}, Plan: clone.MakePlan, Keys: d.keys,
		Server: fmt.Sprintf("https://%s", d.tlsAddr()), Blobs: fmt.Sprintf("http://%s/store", d.httpAddr()),
		Gateway: d.config.Gateway, DNS: d.config.DNS, Domain: d.config.Domain, Log: d.log.With("server", "machines"),
		Ending: ctx.Done(), Update: d.syncer.policy, Pair: d.syncer.pairOf, Agent: d.agents,
	}
	d.machines = machines
	admin := &web.Admin{Drifts: machines, Captures: machines, Enlists: machines, Cluster: d.cluster, CheckDeploy: d.checkDeploy, Version: version, Started: time.Now(), Log: d.log.With("server", "admin")}
	if len(d.syncer.syncs) > 0 {
		admin.Sync = d.syncer
	}
	return []web.Door{
		{Name: "http", Listener: s.plain, Handler: web.Plain(store.Handler(d.store), boot)},
		{Name: "tls", Listener: s.secure, Handler: machines.Handler(), TLS: d.ca.TLS()},
		{Name: "admin", Listener: s.admin, Handler: admin.Handler(), Streams: true},
	}
}

// serve starts everything on open sockets, which it closes when ctx ends.
func (d *daemon) serve(ctx context.Context, group *errgroup.Group, s *sockets) {
	d.serveBoot(ctx, group, s)
	d.syncer = newSyncer(d)
	d.syncer.pairUp(ctx)
	doors := d.doors(ctx, s)
	group.Go(func() error { return web.Serve(ctx, d.log, doors...) })
	d.syncer.run(ctx, group)
}

func (d *daemon) bootCache() string { return filepath.Join(d.g.state, "cache", "boot") }

// checkDeploy says whether a version can be deployed to a node.
func (d *daemon) checkDeploy(ctx context.Context, node cluster.Node, ref string) (ver, digest string, warnings []string, err error) {
	v, err := d.catalog.Resolve(ctx, ref)
	if err != nil {
		return "", "", nil, &cluster.RefusedError{What: err.Error(), Hint: "doppel image ls shows what there is"}
	}
	m, err := d.catalog.Manifest(ctx, v)
	if err != nil {
		return "", "", nil, fmt.Errorf("reading %s: %w", v.Ref(), err)
	}
	firmware, seen := d.firmware(node)
	if !seen {
		return v.Ref(), v.Digest, []string{"this machine was never seen to boot from the network, so its firmware is not known"}, nil
	}
	if err := clone.Check(m.Head, firmware); err != nil {
		var r *clone.RefusedError
		if errors.As(err, &r) {
			return "", "", nil, &cluster.RefusedError{What: fmt.Sprintf("%s cannot be installed on %s: %s", v.Ref(), node.Name, r.What), Hint: r.Hint}
		}
		return "", "", nil, err
	}
	return v.Ref(), v.Digest, nil, nil
}

// firmware is what the node's machine was last seen to boot with.
func (d *daemon) firmware(node cluster.Node) (clone.Firmware, bool) {
	if node.MAC == nil {
		return "", false
	}
	s, ok := d.cluster.Sighting(*node.MAC)
	switch {
	case !ok:
		return "", false
	case s.Arch == pxe.ArchBIOS.String():
		return clone.BIOS, true
	case strings.HasPrefix(s.Arch, "uefi"):
		return clone.UEFI, true
	}
	return "", false
}
