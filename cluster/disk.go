package cluster

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// The buckets of the database. Keys are names, addresses as bytes, or sequence
// numbers in big endian; values are JSON.
var (
	bucketMeta      = []byte("meta")
	bucketNodes     = []byte("nodes")
	bucketSightings = []byte("sightings")
	bucketLeases    = []byte("leases")
	bucketEvents    = []byte("events")
	bucketLog       = []byte("log")
	keyMeta         = []byte("state")
)

// diskVersion is the format of the buckets.
const diskVersion = 1

// meta is what the state has but once.
type meta struct {
	Version    int        `json:"version"`
	Seq        uint64     `json:"seq"`
	EventSeq   uint64     `json:"event_seq"`
	Collection Collection `json:"collection"`

	Syncs map[string]Sync `json:"syncs,omitempty"`
}

func openDB(path string, timeout time.Duration) (*bbolt.DB, error) {
	_, statErr := os.Stat(path)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: timeout, FreelistType: bbolt.FreelistMapType})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("opening %s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the cluster's state: %s: %w", path, err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketNodes, bucketSightings, bucketLeases, bucketEvents, bucketLog} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		if tx.Bucket(bucketMeta).Get(keyMeta) != nil {
			return nil
		}
		return putJSON(tx.Bucket(bucketMeta), keyMeta, meta{Version: diskVersion})
	})
	if err == nil && errors.Is(statErr, os.ErrNotExist) {
		err = syncDir(filepath.Dir(path)) // the new file's name must last, too
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the cluster's state: %s: %w", path, err), db.Close())
	}
	return db, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// load reads the state from disk, for the writer and for readers.
func (c *Cluster) load() error {
	work, seen := newState(c.options), newState(c.options)
	var events []Event
	err := c.db.View(func(tx *bbolt.Tx) error {
		var m meta
		if err := json.Unmarshal(tx.Bucket(bucketMeta).Get(keyMeta), &m); err != nil {
			return fmt.Errorf("reading meta: %w", err)
		}
		if m.Version != diskVersion {
			return fmt.Errorf("its format is %d, this doppel knows %d", m.Version, diskVersion)
		}
		for _, s := range []*state{work, seen} {
			s.seq, s.eventSeq, s.collection, s.syncs = m.Seq, m.EventSeq, m.Collection, m.Syncs
		}
		return errors.Join(
			eachJSON(tx.Bucket(bucketNodes), func(n Node) {
				work.replaceNode(n.Name, &n)
				seen.replaceNode(n.Name, &n)
			}),
			eachJSON(tx.Bucket(bucketSightings), func(v Sighting) { work.sightings[v.MAC], seen.sightings[v.MAC] = v, v }),
			eachJSON(tx.Bucket(bucketLeases), func(l Lease) { work.leases[l.Addr], seen.leases[l.Addr] = l, l }),
			eachJSON(tx.Bucket(bucketEvents), func(e Event) { events = append(events, e) }),
		)
	})
	if err != nil {
		return fmt.Errorf("reading the cluster's state: %s: %w", c.db.Path(), err)
	}
	c.work = work
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen, c.events = seen, events
	c.notify()
	return nil
}

func (c *Cluster) seqOnDisk() (uint64, error) {
	var m meta
	err := c.db.View(func(tx *bbolt.Tx) error {
		return json.Unmarshal(tx.Bucket(bucketMeta).Get(keyMeta), &m)
	})
	return m.Seq, err
}

// persist writes a state's journal in one transaction.
func (c *Cluster) persist(s *state) error {
	return c.db.Update(func(tx *bbolt.Tx) error {
		for name := range s.journal.nodes {
			n, ok := s.nodes[name]
			if err := putOrDelete(tx.Bucket(bucketNodes), []byte(name), n, ok); err != nil {
				return err
			}
		}
		for mac := range s.journal.sightings {
			v, ok := s.sightings[mac]
			if err := putOrDelete(tx.Bucket(bucketSightings), mac[:], v, ok); err != nil {
				return err
			}
		}
		for addr := range s.journal.leases {
			l, ok := s.leases[addr]
			if err := putOrDelete(tx.Bucket(bucketLeases), addr.AsSlice(), l, ok); err != nil {
				return err
			}
		}
		log, events := tx.Bucket(bucketLog), tx.Bucket(bucketEvents)
		log.FillPercent, events.FillPercent = 0.95, 0.95 // keys only grow
		for _, e := range s.journal.entries {
			b, err := EncodeEntry(e)
			if err != nil {
				return err
			}
			if err := log.Put(seqKey(e.Seq), b); err != nil {
				return err
			}
		}
		for _, e := range s.journal.events {
			if err := putJSON(events, seqKey(e.Seq), e); err != nil {
				return err
			}
		}
		return errors.Join(
			dropBefore(log, s.seq, c.options.KeepLog),
			dropBefore(events, s.eventSeq, c.options.KeepEvents),
			putJSON(tx.Bucket(bucketMeta), keyMeta, meta{
				Version: diskVersion, Seq: s.seq, EventSeq: s.eventSeq, Collection: s.collection, Syncs: s.syncs,
			}),
		)
	})
}

// dropBefore forgets all but the last keep of a bucket with sequence numbers.
func dropBefore(b *bbolt.Bucket, last uint64, keep int) error {
	if last <= uint64(keep) {
		return nil
	}
	end := last - uint64(keep)
	cursor := b.Cursor()
	for k, _ := cursor.First(); k != nil && binary.BigEndian.Uint64(k) <= end; k, _ = cursor.First() {
		if err := cursor.Delete(); err != nil {
			return err
		}
	}
	return nil
}

func seqKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }

func putJSON(b *bbolt.Bucket, key []byte, v any) error {
	j, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Put(key, j)
}

func putOrDelete(b *bbolt.Bucket, key []byte, v any, there bool) error {
	if !there {
		return b.Delete(key)
	}
	return putJSON(b, key, v)
}

func eachJSON[T any](b *bbolt.Bucket, fn func(T)) error {
	return b.ForEach(func(k, j []byte) error {
		var v T
		if err := json.Unmarshal(j, &v); err != nil {
			return fmt.Errorf("reading %x: %w", k, err)
		}
		fn(v)
		return nil
	})
}

// CompactedError says that entries are no longer in the log.
type CompactedError struct {
	First uint64 // the first that is
}

func (e *CompactedError) Error() string {
	return fmt.Sprintf("the log begins at entry %d", e.First)
}

// Log gives the entries after the one numbered after, in order, to fn. It
// gives a *CompactedError when some of them are kept no more.
func (c *Cluster) Log(after uint64, fn func(Entry) error) error {
	return c.db.View(func(tx *bbolt.Tx) error {
		cursor := tx.Bucket(bucketLog).Cursor()
		if k, _ := cursor.First(); k != nil && binary.BigEndian.Uint64(k) > after+1 {
			return &CompactedError{First: binary.BigEndian.Uint64(k)}
		}
		for k, v := cursor.Seek(seqKey(after + 1)); k != nil; k, v = cursor.Next() {
			e, err := DecodeEntry(v)
			if err != nil {
				return fmt.Errorf("reading the log: %w", err)
			}
			if err := fn(e); err != nil {
				return err
			}
		}
		return nil
	})
}
