package store

import "encoding/binary"

// index is the chunks of a vault by their names; one that is in several packs, in
// the first of them. A million of them take 56 MB
// and hold no pointer, so that the garbage collector has nothing to look at:
// records in the order in which they came, and a table of their numbers with
// open addressing.
type index struct {
	packs   []*pack
	records [][]record // recordsAtOnce in each but the last
	table   []uint32   // a record's number and 1; 0: free; as long as a power of two
	count   int
}

// record is one chunk: where it is, and what it is called.
type record struct {
	id               ID
	pack, block, off uint32
	size             uint32
}

const recordsAtOnce = 1 << 14

// at gives a record by its number.
func (x *index) at(n uint32) *record { return &x.records[n/recordsAtOnce][n%recordsAtOnce] }

// slot is where in the table the chunk is, or would be. Names are digests
// already: their first bytes are as good as any hash of them.
func (x *index) slot(ref Ref) int {
	mask := uint64(len(x.table) - 1)
	at := binary.LittleEndian.Uint64(ref.ID[:]) & mask
	for {
		n := x.table[at]
		if n == 0 {
			return int(at)
		}
		if r := x.at(n - 1); r.id == ref.ID && x.packs[r.pack].audience() == ref.Audience {
			return int(at)
		}
		at = (at + 1) & mask
	}
}

// find gives a chunk's number.
func (x *index) find(ref Ref) (uint32, bool) {
	if x.count == 0 {
		return 0, false
	}
	n := x.table[x.slot(ref)]
	return n - 1, n > 0
}

// add takes in the chunks of a pack.
func (x *index) add(p *pack) {
	number := uint32(len(x.packs))
	x.packs = append(x.packs, p)
	for i := range p.blocks {
		off := uint32(0)
		for _, c := range p.blocks[i].chunks {
			x.addChunk(p.audience(), record{id: c.ID, pack: number, block: uint32(i), off: off, size: c.Size})
			off += c.Size
		}
	}
}

func (x *index) addChunk(aud Audience, r record) {
	if 3*len(x.table) <= 4*x.count {
		x.grow()
	}
	slot := x.slot(Ref{aud, r.id})
	if x.table[slot] > 0 {
		return
	}
	if x.count%recordsAtOnce == 0 {
		x.records = append(x.records, make([]record, 0, recordsAtOnce))
	}
	last := &x.records[len(x.records)-1]
	*last = append(*last, r)
	x.count++
	x.table[slot] = uint32(x.count)
}

// grow doubles the table.
func (x *index) grow() {
	old := x.table
	x.table = make([]uint32, max(1024, 2*len(old)))
	mask := uint64(len(x.table) - 1)
	for _, n := range old {
		if n == 0 {
			continue
		}
		at := binary.LittleEndian.Uint64(x.at(n - 1).id[:]) & mask
		for x.table[at] != 0 {
			at = (at + 1) & mask
		}
		x.table[at] = n
	}
}
