package dhcpd

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	logBurst     = 20               // lines of one text that are written at once
	logBurstInfo = 1000             // of what clients were given
	logEvery     = 10 * time.Second // and per this time
)

// limited is a log that a flood of packets does not flood: of each text, which
// is a constant of this package, only so many lines are written in a time; the
// next one says how many were left out.
type limited struct {
	log *slog.Logger

	mu    sync.Mutex
	texts map[limitedKey]*count
}

type limitedKey struct {
	level slog.Level
	text  string
}

type count struct {
	since         time.Time
	written, left int
}

func newLimited(log *slog.Logger) *limited {
	return &limited{log: log, texts: make(map[limitedKey]*count)}
}

// say writes a line, unless there were too many like it.
func (l *limited) say(ctx context.Context, level slog.Level, text string, args ...any) {
	if !l.log.Enabled(ctx, level) {
		return
	}
	left, ok := l.pass(limitedKey{level, text}, time.Now())
	if !ok {
		return
	}
	if left > 0 {
		args = append(args, "left_out", left)
	}
	l.log.Log(ctx, level, text, args...)
}

func (l *limited) pass(key limitedKey, now time.Time) (left int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.texts[key]
	if c == nil || now.Sub(c.since) >= logEvery {
		if c != nil {
			left = c.left
		}
		c = &count{since: now}
		l.texts[key] = c
		c.written = 1
		return left, true
	}
	burst := logBurst
	if key.level == slog.LevelInfo {
		burst = logBurstInfo
	}
	if c.written == burst {
		c.left++
		return 0, false
	}
	c.written++
	return 0, true
}
