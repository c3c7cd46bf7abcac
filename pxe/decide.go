package pxe

import (
	"fmt"

	"doppel/cluster"
)

// Action is what a machine is to do once iPXE asks for its script.
type Action uint8

const (
	OwnDisk   Action = iota // boot what is installed
	Await                   // show the MAC and ask again
	Hold                    // show why the install failed and ask again
	Installer               // kernel and initramfs
)

func (a Action) String() string {
	return [...]string{"own disk", "wait", "hold", "installer"}[a&3]
}

// Address is which address a machine may have.
type Address uint8

const (
	NoAddress Address = iota // silence
	PoolAddress
	OwnAddress // the node's reservation
)

func (a Address) String() string {
	return [...]string{"silence", "pool", "own"}[a%3]
}

// File is what the DHCP answer tells a machine to fetch.
type File uint8

const (
	NoFile File = iota
	TFTPLoader
	HTTPLoader
	Script
)

func (f File) String() string {
	return [...]string{"no file", "loader by tftp", "loader by http", "script"}[f&3]
}

// Input is all that a decision depends on.
type Input struct {
	Node       bool // the machine's MAC belongs to a node
	State      cluster.State
	Collecting bool // the collection window is open
	// Patient says that the machine waits already and that its patience is
	// not at its end (see Patience).
	Patient bool
	Client  Client
}

// Decision is the answer.
type Decision struct {
	Note    bool // the machine is a sighting
	Address Address
	File    File
	Action  Action
}

func (d Decision) String() string {
	note := "-"
	if d.Note {
		note = "noted"
	}
	return fmt.Sprintf("%s, %s, %s, %s", note, d.Address, d.File, d.Action)
}

// Decide is the table of who boots what. It is pure.
//
//	machine                 address  then
//	unknown                 silence  own disk
//	unknown, collection     pool     wait
//	Assigned                own      own disk; a machine that waits goes on waiting
//	Armed, Installing       own      installer
//	Failed                  own      hold, with the reason
//	Installed               own      own disk
//
// A machine that is told nothing, or no file, starts its own disk because its
// firmware goes on to the next entry of its boot order.
func Decide(in Input) Decision {
	d := Decision{Note: in.Client.Via != Plain}
	d.Action = action(in)
	switch {
	case in.Node:
		d.Address = OwnAddress
	case d.Action == Await && in.Client.Via != Plain:
		d.Address = PoolAddress
	}
	if d.Address != NoAddress {
		d.File = file(in.Client, d.Action)
	}
	return d
}

func action(in Input) Action {
	if !in.Node {
		if in.Collecting {
			return Await
		}
		return OwnDisk
	}
	switch in.State {
	case cluster.Armed, cluster.Installing:
		return Installer
	case cluster.Failed:
		return Hold
	case cluster.Assigned:
		if in.Patient {
			return Await
		}
	}
	return OwnDisk
}

// file is the loader that a client's firmware understands.
func file(c Client, a Action) File {
	served := c.Arch == ArchBIOS || c.Arch == ArchX8664 || c.Arch == ArchARM64
	switch c.Via {
	case IPXE:
		return Script
	case ROM:
		if served {
			return TFTPLoader
		}
	case HTTP:
		// BIOS has no HTTP boot that could start undionly.kpxe.
		if served && c.Arch != ArchBIOS {
			return HTTPLoader
		}
	}
	return NoFile
}
