package bench

import (
	"cmp"
	"context"
	"errors"
)

// side is one of those that are compared.
type side struct {
	name    string // a word
	title   string // as a table gives it
	prepare string // what is run before, and not measured
	script  string
	do      func(ctx context.Context) (measured, error) // instead of script, which then only tells what it does
	synced  string                                      // a directory on the file system that is to be synced
	stored  string                                      // what the script writes to
	before  string                                      // what that was before
}

// figure is what is measured of each round. Its row beside the first peer has
// its name and its goal; beside another one, the peer's name is added, and the
// goal is to be at least as good.
type figure struct {
	name, unit            string
	goal                  goal
	alone                 bool   // for the first peer only
	peerName, peerCommand string // of the first peer's row, where they are not the peer's own
	of                    func(p side, own, peer measured) ([2]float64, error)
}

// atLeastAsGood is the goal beside the peers that no figure is set for.
var atLeastAsGood = goal{figure: "ratio", most: 1}

// seconds is the figure of a row of times.
func seconds(_ side, own, peer measured) ([2]float64, error) {
	return [2]float64{own.seconds, peer.seconds}, nil
}

// compare runs doppel and its peers n times, one after the other, the first to
// begin with another one each time, and adds the rows of each figure. A peer
// that does not run is left out from then on, and its rows say why.
func (b *bench) compare(ctx context.Context, own side, peers []side, figures ...figure) error {
	sides := append([]side{own}, peers...)
	samples := make([][][][2]float64, len(figures)) // by figure, by peer
	for f := range samples {
		samples[f] = make([][][2]float64, len(peers))
	}
	failed := make([]error, len(sides))
	for i := range b.o.N {
		m := make([]measured, len(sides))
		for j := range sides {
			k := (i + j) % len(sides)
			if failed[k] != nil {
				continue
			}
			m[k], failed[k] = b.once(ctx, sides[k])
			if err := errors.Join(ctx.Err(), failed[0]); err != nil {
				return err
			}
		}
		for k, p := range peers {
			if failed[k+1] != nil {
				continue
			}
			for f, figure := range figures {
				pair, err := figure.of(p, m[0], m[k+1])
				if err != nil {
					return err
				}
				samples[f][k] = append(samples[f][k], pair)
			}
		}
	}
	for k, p := range peers {
		for f, figure := range figures {
			r := Row{Name: figure.name, Unit: figure.unit, PeerName: p.title, PeerCommand: p.script, Samples: samples[f][k]}
			g := figure.goal
			switch {
			case k > 0 && figure.alone:
				continue
			case k > 0:
				r.Name += "-" + p.name
				g = atLeastAsGood
			default:
				r.PeerName, r.PeerCommand = cmp.Or(figure.peerName, p.title), cmp.Or(figure.peerCommand, p.script)
			}
			if failed[k+1] != nil {
				r.Error = failed[k+1].Error()
			}
			b.row(r, g)
		}
	}
	return nil
}

// once prepares a side and measures it.
func (b *bench) once(ctx context.Context, s side) (measured, error) {
	if s.prepare != "" {
		if err := b.must(ctx, s.prepare); err != nil {
			return measured{}, err
		}
	}
	if err := b.must(ctx, "sync"); err != nil { // what came before is not to be paid for here
		return measured{}, err
	}
	var m measured
	var err error
	if s.do != nil {
		m, err = s.do(ctx)
	} else {
		m, err = b.run(ctx, s.script, s.synced)
	}
	b.peak[s.name] = max(b.peak[s.name], m.peak)
	return m, err
}
