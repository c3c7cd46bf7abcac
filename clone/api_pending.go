package clone

import (
	"context"
	"errors"

	"doppel/imaging"
	"doppel/imaging/store"
)

var errPending = errors.New("not built yet")

// MakePlan decides what the machine hw is to become, by what the inventory
// says of it.
func MakePlan(t Target, hw Hardware) (*Plan, error) { return nil, errPending }

// Check tells whether an image can be installed on a machine that starts with
// the firmware; the error names the package that is missing.
func Check(h imaging.Head, fw Firmware) error { return errPending }

// Install carries out a plan on m. Doing it again after any interruption
// continues where it stopped and comes to the same.
func Install(ctx context.Context, m Machine, plan *Plan, image *imaging.Manifest, vault *store.Vault, o InstallOptions) error {
	return errPending
}

// Linux is the machine this process runs on.
type Linux struct{}

// NewLinux is the machine this process runs on.
func NewLinux() *Linux { return &Linux{} }
