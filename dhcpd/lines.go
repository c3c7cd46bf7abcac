package dhcpd

import "sync"

const (
	maxClients = 1024 // served at once
	maxWaiting = 4    // packets of one client; it repeats itself anyway
)

// lines serves each client's packets in order, and no client behind another.
type lines struct {
	mu      sync.Mutex
	waiting map[MAC][]func() // a client that is being served has an entry
	running sync.WaitGroup
}

func newLines() *lines { return &lines{waiting: make(map[MAC][]func())} }

// add puts work at the end of the client's line; false if there is no room.
func (l *lines) add(m MAC, work func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	line, served := l.waiting[m]
	if served {
		if len(line) == maxWaiting {
			return false
		}
		l.waiting[m] = append(line, work)
		return true
	}
	if len(l.waiting) == maxClients {
		return false
	}
	l.waiting[m] = nil
	l.running.Go(func() {
		for work != nil {
			work()
			work = l.next(m)
		}
	})
	return true
}

// next takes the first of the client's line, or closes it.
func (l *lines) next(m MAC) func() {
	l.mu.Lock()
	defer l.mu.Unlock()
	line := l.waiting[m]
	if len(line) == 0 {
		delete(l.waiting, m)
		return nil
	}
	l.waiting[m] = line[1:]
	return line[0]
}

// wait waits until all lines are done. Nothing may be added any more.
func (l *lines) wait() { l.running.Wait() }
