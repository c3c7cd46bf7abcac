package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// progress shows how far one long job is: as a bar on a terminal, as a line
// every few seconds elsewhere, as JSON events under --json.
type progress struct {
	update func(done, total int64, text string)
	finish func()
}

// plainEvery is how often a job says something where there is no terminal.
const plainEvery = 3 * time.Second

// newProgress makes the progress display of a command. JSON events go to out;
// everything for people goes to standard error.
func newProgress(g *globals, out io.Writer, job string) *progress {
	switch {
	case g.json:
		return jsonProgress(out, job)
	case term.IsTerminal(int(os.Stderr.Fd())):
		return barProgress(job)
	}
	return plainProgress(job)
}

func jsonProgress(out io.Writer, job string) *progress {
	every := newPace(time.Second)
	return &progress{
		update: func(done, total int64, text string) {
			if every.due() {
				_ = printEvent(out, "progress", map[string]any{"job": job, "done": done, "total": total, "text": text})
			}
		},
		finish: func() {},
	}
}

func barProgress(job string) *progress {
	var mu sync.Mutex // not for line: mpb asks for it while update waits for mpb
	var line atomic.Value
	said := func(decor.Statistics) string { s, _ := line.Load().(string); return s }
	p := mpb.New(mpb.WithOutput(os.Stderr), mpb.WithRefreshRate(150*time.Millisecond))
	var bar *mpb.Bar
	return &progress{
		update: func(done, total int64, text string) {
			mu.Lock()
			defer mu.Unlock()
			line.Store(progressText(done, total, text))
			if bar == nil {
				// Where the end is not known, there is something that moves.
				style := mpb.BarFillerBuilder(mpb.BarStyle())
				if total == 0 {
					style = mpb.SpinnerStyle().PositionLeft()
				}
				bar = p.New(total, style, mpb.PrependDecorators(decor.Name(job+" ")), mpb.AppendDecorators(decor.Any(said)))
			}
			if total > 0 {
				bar.SetTotal(total, false)
			}
			bar.SetCurrent(done)
		},
		finish: func() {
			mu.Lock()
			b := bar
			mu.Unlock()
			if b != nil {
				b.Abort(false)
			}
			p.Wait()
		},
	}
}

// progressText is how far a job is, in words.
func progressText(done, total int64, text string) string {
	of := ""
	if total > 0 {
		of = " of " + bytesText(total)
	}
	return fmt.Sprintf("%s%s %s", bytesText(done), of, text)
}

func plainProgress(job string) *progress {
	every := newPace(plainEvery)
	return &progress{
		update: func(done, total int64, text string) {
			if every.due() {
				fmt.Fprintf(os.Stderr, "%s: %s\n", job, progressText(done, total, text))
			}
		},
		finish: func() {},
	}
}

// pace tells when it is time to say something again.
type pace struct {
	mu    sync.Mutex
	every time.Duration
	last  time.Time
}

func newPace(every time.Duration) *pace { return &pace{every: every, last: time.Now()} }

func (p *pace) due() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.last) < p.every {
		return false
	}
	p.last = time.Now()
	return true
}

// printEvent prints one JSON object on a line, with its type.
func printEvent(w io.Writer, kind string, fields any) error {
	b, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	line := fmt.Sprintf(`{"type":%q`, kind)
	if len(b) > 2 {
		line += "," + string(b[1:])
	} else {
		line += "}"
	}
	_, err = fmt.Fprintln(w, line)
	return err
}

// printJSON prints one document.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// bytesText writes a number of bytes with a decimal unit.
func bytesText(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	v, i := float64(n), 0
	for v >= 1000 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}
