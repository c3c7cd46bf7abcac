package bench

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
)

// Row is what one comparison came to.
type Row struct {
	Name        string       `json:"name"`
	Doppel      float64      `json:"doppel"` // median
	Peer        float64      `json:"peer"`   // likewise
	PeerName    string       `json:"peer_name"`
	Unit        string       `json:"unit"`
	N           int          `json:"n"`
	Ratio       float64      `json:"ratio"` // the median of the pairs' ratios
	Goal        string       `json:"goal"`
	Met         bool         `json:"met"`
	Samples     [][2]float64 `json:"samples"` // doppel's and the peer's, pair by pair
	PeerCommand string       `json:"peer_command"`
	Error       string       `json:"error,omitempty"` // why there are no samples
}

// goal is what a row is to reach: at most, or at least, so much of the ratio or
// of doppel's own figure.
type goal struct {
	figure string // "ratio" or "doppel"
	most   float64
	least  float64
}

func (g goal) String() string {
	if g.least > 0 {
		return fmt.Sprintf("%s >= %g", g.figure, g.least)
	}
	return fmt.Sprintf("%s <= %g", g.figure, g.most)
}

func (g goal) met(r *Row) bool {
	v := r.Ratio
	if g.figure == "doppel" {
		v = r.Doppel
	}
	if g.least > 0 {
		return v >= g.least
	}
	return v <= g.most
}

// finish computes what follows from the samples.
func (r *Row) finish(g goal) {
	r.Goal, r.N = g.String(), len(r.Samples)
	if r.Samples == nil {
		r.Samples = [][2]float64{}
	}
	if r.N == 0 || r.Error != "" {
		return
	}
	var own, peer, ratios []float64
	for _, s := range r.Samples {
		own, peer = append(own, s[0]), append(peer, s[1])
		if s[1] > 0 {
			ratios = append(ratios, s[0]/s[1])
		}
	}
	r.Doppel, r.Peer, r.Ratio = median(own), median(peer), median(ratios)
	r.Met = g.met(r)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.SortFunc(v, cmp.Compare)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// appendRows adds rows to a file of one JSON object a line.
func appendRows(path string, rows []Row) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	e := json.NewEncoder(f)
	e.SetEscapeHTML(false)
	for _, r := range rows {
		if err := e.Encode(r); err != nil {
			f.Close()
			return err
		}
	}
	return f.Close()
}

// printRows prints a table for people.
func printRows(w io.Writer, rows []Row) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ROW\tDOPPEL\tPEER\tUNIT\tRATIO\tGOAL\t\tN\tPEER")
	for _, r := range rows {
		if r.Error != "" {
			fmt.Fprintf(t, "%s\t-\t-\t%s\t-\t%s\tnot met\t%d\t%s: %s\n", r.Name, r.Unit, r.Goal, r.N, r.PeerName, r.Error)
			continue
		}
		met := "not met"
		if r.Met {
			met = "met"
		}
		fmt.Fprintf(t, "%s\t%.2f\t%.2f\t%s\t%.2f\t%s\t%s\t%d\t%s\n", r.Name, r.Doppel, r.Peer, r.Unit, r.Ratio, r.Goal, met, r.N, r.PeerName)
	}
	_ = t.Flush()
}
