package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"doppel/imaging"
	"doppel/imaging/store"
)

func newImageVerify(g *globals) *cobra.Command {
	var all, readData, chunks bool
	c := &cobra.Command{
		Use:   "verify REF… | --all",
		Short: "Check that versions are wholly in the store",
		Long: `Verify checks that everything a version needs is in the store, and with
--read-data that every byte is what it was when it was written. --chunks also
decodes everything and holds each chunk against its name, which finds, too, what
was wrong before it was written, and takes several times as long. Exit code 4 if
anything is missing or wrong; each line names the image, the path and the chunk.`,
		Example: `  doppel image verify head@latest
  doppel image verify --all --read-data`,
		ValidArgsFunction: complete(true, g.completeRef),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("doppel image verify --all checks everything", "name versions, or give --all")
			}
			c, err := g.catalog()
			if err != nil {
				return err
			}
			depth := store.Tables
			switch {
			case chunks:
				depth = store.Chunks
			case readData:
				depth = store.Bytes
			}
			faults := []faultShown{}
			err = c.VerifyDepth(cmd.Context(), args, depth, func(f imaging.ImageFault) { faults = append(faults, showFault(f)) })
			if err != nil {
				return err
			}
			return printFaults(cmd.OutOrStdout(), g, faults)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "check every version")
	c.Flags().BoolVar(&readData, "read-data", false, "read every byte, not only what is there")
	c.Flags().BoolVar(&chunks, "chunks", false, "read, decode and digest every chunk")
	return c
}

// faultShown is one fault in JSON.
type faultShown struct {
	Image string `json:"image,omitempty"`
	Path  string `json:"path,omitempty"`
	Chunk string `json:"chunk,omitempty"`
	Error string `json:"error"`
}

func showFault(f imaging.ImageFault) faultShown {
	s := faultShown{Path: f.Path, Error: f.Err.Error()}
	s.Image = f.Version.Image
	if f.Version.Number > 0 {
		s.Image = f.Version.Ref()
	}
	if !f.Chunk.IsZero() {
		s.Chunk = f.Chunk.String()
	}
	return s
}

func printFaultLines(w io.Writer, faults []faultShown) {
	for _, f := range faults {
		where := f.Image
		if where == "" {
			where = "(no image)"
		}
		for _, part := range []string{f.Path, f.Chunk} {
			if part != "" {
				where += "  " + printable(part)
			}
		}
		fmt.Fprintf(w, "%s  %s\n", where, printable(f.Error))
	}
}

func printFaults(w io.Writer, g *globals, faults []faultShown) error {
	if g.json {
		if err := printJSON(w, map[string]any{"faults": faults}); err != nil {
			return err
		}
	} else {
		printFaultLines(w, faults)
	}
	if len(faults) > 0 {
		return codeError(exitFound)
	}
	if g.json {
		return nil
	}
	_, err := fmt.Fprintln(w, "everything is there and right")
	return err
}
