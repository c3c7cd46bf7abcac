package main

import (
	"context"
	"net/netip"

	"doppel/cluster"
	"doppel/dhcpd"
)

// leases keeps dhcpd's leases in the cluster's state.
type leases struct{ *cluster.Cluster }

func (l leases) All(context.Context) ([]dhcpd.Lease, error) {
	var out []dhcpd.Lease
	for _, x := range l.Cluster.Leases() {
		out = append(out, dhcpd.Lease{Addr: x.Addr, MAC: dhcpd.MAC(x.MAC), ClientID: x.ClientID, Hostname: x.Hostname, Expires: x.Expires, Declined: x.Declined})
	}
	return out, nil
}

func (l leases) Put(ctx context.Context, x dhcpd.Lease) error {
	return l.Apply(ctx, []dhcpd.Change{{Lease: x}})
}

func (l leases) Delete(ctx context.Context, addr netip.Addr) error {
	return l.Apply(ctx, []dhcpd.Change{{Lease: dhcpd.Lease{Addr: addr}, Gone: true}})
}

// Apply implements dhcpd.Batch: one commit for all.
func (l leases) Apply(ctx context.Context, changes []dhcpd.Change) error {
	out := make([]cluster.Change, 0, len(changes))
	for _, c := range changes {
		if c.Gone {
			out = append(out, cluster.DeleteLease{Addr: c.Lease.Addr})
			continue
		}
		x := c.Lease
		out = append(out, cluster.PutLease{Lease: cluster.Lease{
			Addr: x.Addr, MAC: cluster.MAC(x.MAC), ClientID: x.ClientID, Hostname: x.Hostname, Expires: x.Expires, Declined: x.Declined,
		}})
	}
	return l.Commit(ctx, out...)
}
