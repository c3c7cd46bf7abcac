package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"doppel/imaging"
	"doppel/imaging/store"
)

func newImageRepair(g *globals) *cobra.Command {
	var dryRun, chunks bool
	c := &cobra.Command{
		Use:   "repair",
		Short: "Save what is whole of a damaged store",
		Long: `Repair reads the whole store and saves what can be saved of what is damaged: files
of names are taken from their copies, whole chunks of damaged packs are written
anew, and the damaged packs set aside in store/damaged, where the next prune
deletes them. What is lost for good is listed with the versions and paths that it
harms, and exit code 4 says that there is some. The next capture of the same tree
reads and stores again what is still in it, which makes older versions whole, too.

Captures may go on meanwhile. Nothing is made worse by breaking it off.`,
		Example: `  doppel image repair --dry-run
  doppel image repair && doppel image verify --all --read-data`,
		Args: exactArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.catalog()
			if err != nil {
				return err
			}
			o := imaging.RepairOptions{DryRun: dryRun, Depth: store.Bytes}
			if chunks {
				o.Depth = store.Chunks
			}
			r, err := c.Repair(cmd.Context(), o)
			if errors.Is(err, imaging.ErrNoState) {
				r, err = &imaging.RepairReport{Names: []imaging.RepairedNames{}, Packs: []imaging.RepairedPack{}, Linked: []string{}}, nil
			}
			if err != nil {
				return err
			}
			if err := printRepair(cmd.OutOrStdout(), g, r); err != nil {
				return err
			}
			if len(r.Lost) > 0 {
				return codeError(exitFound)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "only say what would be saved and what is lost")
	c.Flags().BoolVar(&chunks, "chunks", false, "also look for what was wrong before it was written, which takes several times as long")
	return c
}

func printRepair(w io.Writer, g *globals, r *imaging.RepairReport) error {
	lost := make([]faultShown, 0, len(r.Lost))
	for _, f := range r.Lost {
		lost = append(lost, showFault(f))
	}
	if g.json {
		return printJSON(w, struct {
			*imaging.RepairReport
			Lost []faultShown `json:"lost"`
		}{r, lost})
	}
	would := "were "
	if r.DryRun {
		would = "would be "
	}
	for _, n := range r.Names {
		fmt.Fprintf(w, "%s: %s", printable(n.Image), printable(n.Error))
		if n.From != "" {
			fmt.Fprintf(w, "; its versions %staken from the %s", would, n.From)
		}
		fmt.Fprintln(w)
	}
	for _, p := range r.Packs {
		fmt.Fprintf(w, "pack %s: %s; %s (%s) %ssaved\n", p.Pack, printable(p.Error), counted(p.Saved, "chunk"), bytesText(p.Bytes), would)
	}
	for _, v := range r.Linked {
		fmt.Fprintf(w, "%s: its manifest is damaged; the contents of another that says the same %staken\n", v, would)
	}
	switch {
	case len(lost) > 0:
		printFaultLines(w, lost)
		fmt.Fprintln(w, "that is lost: capture the same trees again, which brings back what is still in them")
	case len(r.Names)+len(r.Packs)+len(r.Linked) == 0:
		fmt.Fprintln(w, "nothing is damaged")
	default:
		fmt.Fprintln(w, "nothing is lost")
	}
	return nil
}
