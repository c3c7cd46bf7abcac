package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

func (c Sight) prepare(s *state, at time.Time) (Change, error) {
	if !c.MAC.Unicast() {
		return nil, refuse("", "%s is a group address, no machine's own", c.MAC)
	}
	c.clean()
	old, seen := s.sightings[c.MAC]
	if c.Count = max(c.Count, old.Count+1); seen {
		c.First = old.First
	}
	if c.First.IsZero() {
		c.First = at
	}
	if c.Last.IsZero() {
		c.Last = at
	}
	c.First, c.Last = c.First.UTC(), c.Last.UTC()
	return c, nil
}

// clean makes what a machine says of itself fit to keep.
func (v *Sighting) clean() {
	v.Arch, v.UUID = text(v.Arch, maxField), text(v.UUID, maxField)
	v.VendorClass, v.Interface = text(v.VendorClass, maxField), text(v.Interface, maxField)
}

func (c Sight) apply(s *state, at time.Time) error {
	_, seen := s.sightings[c.MAC]
	s.putSighting(c.MAC, &c.Sighting)
	if seen {
		return nil
	}
	what := c.Arch
	if c.UUID != "" {
		what += ", " + c.UUID
	}
	e := Event{Time: at, Kind: "sighting", MAC: new(c.MAC), Node: s.byMAC[c.MAC]}
	e.Text = fmt.Sprintf("%s was seen for the first time on %s (%s)", c.MAC, c.Interface, what)
	s.tellEvent(e)
	return nil
}

// makeRoom forgets a sighting when there are more than enough; the log has the
// ForgetSighting that comes of it, so that the limit may differ between two
// states.
type makeRoom struct{}

func (makeRoom) Kind() string { return "make-room" }

// prepare finds, of the machines that are no node's, the one not seen for
// longest. Anyone on the segment can make up MACs.
func (makeRoom) prepare(s *state, at time.Time) (Change, error) {
	if len(s.sightings) < s.rules.KeepSightings {
		return nil, nil
	}
	var oldest Sighting
	found := false
	for mac, v := range s.sightings {
		if s.byMAC[mac] != "" {
			continue
		}
		if !found || v.Last.Before(oldest.Last) || v.Last.Equal(oldest.Last) && bytes.Compare(mac[:], oldest.MAC[:]) < 0 {
			oldest, found = v, true
		}
	}
	if !found {
		return nil, nil
	}
	return ForgetSighting{MAC: oldest.MAC}, nil
}

func (makeRoom) apply(*state, time.Time) error {
	return errors.New("making room is never applied itself")
}

func (c ForgetSighting) prepare(s *state, at time.Time) (Change, error) {
	if _, ok := s.sightings[c.MAC]; !ok {
		return nil, nil
	}
	return c, nil
}

func (c ForgetSighting) apply(s *state, at time.Time) error {
	s.putSighting(c.MAC, nil)
	return nil
}

func (c OpenCollection) prepare(s *state, at time.Time) (Change, error) {
	c.Until = c.Until.UTC().Round(0)
	if !c.Until.After(at) {
		return nil, refuse("give a time to come", "a collection cannot end at %s", c.Until.Format(time.RFC3339))
	}
	if c.Until.After(at.AddDate(1, 0, 0)) {
		return nil, refuse("give at most a year", "a collection cannot stay open until %s", c.Until.Format(time.RFC3339))
	}
	if s.collection.Until.Equal(c.Until) && s.collection.Auto == c.Auto {
		return nil, nil
	}
	return c, nil
}

func (c OpenCollection) apply(s *state, at time.Time) error {
	s.putCollection(Collection(c))
	message := "collecting until " + c.Until.Format(time.RFC3339)
	if c.Auto {
		message += ", assigning machines to free nodes in order"
	}
	s.tell(at, "collect", nil, message)
	return nil
}

func (c CloseCollection) prepare(s *state, at time.Time) (Change, error) {
	if s.collection.Until.IsZero() {
		return nil, nil
	}
	return c, nil
}

func (c CloseCollection) apply(s *state, at time.Time) error {
	s.putCollection(Collection{})
	s.tell(at, "collect", nil, "no longer collecting")
	return nil
}

func (c PutLease) prepare(s *state, at time.Time) (Change, error) {
	c.Addr = c.Addr.Unmap()
	if !c.Addr.Is4() {
		return nil, fmt.Errorf("a lease of %s cannot be kept: it is not an IPv4 address", addrText(c.Addr))
	}
	if len(c.ClientID) > maxField {
		return nil, fmt.Errorf("a lease of %s cannot be kept: its client ID has %d bytes", c.Addr, len(c.ClientID))
	}
	c.Lease = c.clone()
	c.Hostname = text(c.Hostname, maxField)
	c.Expires = c.Expires.UTC().Round(0)
	return c, nil
}

func (c PutLease) apply(s *state, at time.Time) error {
	if c.Addr == (netip.Addr{}) {
		return fmt.Errorf("a lease has no address")
	}
	l := c.clone()
	s.putLease(c.Addr, &l)
	return nil
}

func (c DeleteLease) prepare(s *state, at time.Time) (Change, error) {
	c.Addr = c.Addr.Unmap()
	if _, ok := s.leases[c.Addr]; !ok {
		return nil, nil
	}
	return c, nil
}

func (c DeleteLease) apply(s *state, at time.Time) error {
	s.putLease(c.Addr, nil)
	return nil
}

func (c Note) prepare(s *state, at time.Time) (Change, error) {
	c.What, c.Node, c.Text = text(c.What, maxField), text(c.Node, maxField), text(c.Text, maxText)
	if c.What == "" || c.Text == "" {
		return nil, fmt.Errorf("a note without kind or text cannot be kept")
	}
	return c, nil
}

func (c Note) apply(s *state, at time.Time) error {
	e := Event{Time: at, Kind: c.What, Node: c.Node, Text: c.Text}
	if c.MAC != nil {
		e.MAC = new(*c.MAC)
	}
	s.tellEvent(e)
	return nil
}
