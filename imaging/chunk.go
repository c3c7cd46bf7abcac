package imaging

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
)

// Where files are cut into chunks is part of the format on disk: two stores
// deduplicate against each other, and a new capture against an old one, only
// as long as these numbers and the table stay as they are.
const (
	minChunk    = 16 << 10
	targetChunk = 64 << 10
	maxChunk    = 256 << 10

	// Normalised chunking (FastCDC, Xia et al., 2016, section 3.3): before the
	// target the condition is four times as hard as a 64 KiB average needs,
	// behind it four times as easy, which draws the sizes towards the target.
	hardBits = 16 + 2
	easyBits = 16 - 2
)

// gear is the table of the rolling hash: entry i is the first eight bytes,
// big-endian, of the SHA-256 of "doppel gear v1" and the byte i. A rule, so
// that nobody has to trust 256 numbers.
var gear = gearTable()

func gearTable() (t [256]uint64) {
	for i := range t {
		d := sha256.Sum256(append([]byte("doppel gear v1"), byte(i)))
		t[i] = binary.BigEndian.Uint64(d[:])
	}
	return t
}

// cut tells how long the first chunk of b is. b must hold maxChunk bytes, or
// all that is left of the input.
//
// The hash is shifted left a bit a step, so its lowest bits have seen few
// bytes and the highest the last 64: the condition is on the highest.
func cut(b []byte) int {
	n := len(b)
	if n <= minChunk {
		return n
	}
	n = min(n, maxChunk)
	at, h := roll(b[minChunk:min(n, targetChunk)], 0, 64-hardBits)
	if at >= 0 {
		return minChunk + at
	}
	if n > targetChunk {
		if at, _ = roll(b[targetChunk:n], h, 64-easyBits); at >= 0 {
			return targetChunk + at
		}
	}
	return n
}

// roll goes on with the hash h through b and tells behind which byte its
// highest bits, all but the lowest shift, are zero: -1 behind none. Four bytes
// a turn: the loop's own work would cost as much as the hash.
func roll(b []byte, h uint64, shift uint) (int, uint64) {
	at := 0
	for ; len(b) >= 4; b = b[4:] {
		b := (*[4]byte)(b)
		h1 := h<<1 + gear[b[0]]
		h2 := h1<<1 + gear[b[1]]
		h3 := h2<<1 + gear[b[2]]
		h = h3<<1 + gear[b[3]]
		if h1>>shift == 0 {
			return at + 1, h1
		}
		if h2>>shift == 0 {
			return at + 2, h2
		}
		if h3>>shift == 0 {
			return at + 3, h3
		}
		if h>>shift == 0 {
			return at + 4, h
		}
		at += 4
	}
	for i, c := range b {
		if h = h<<1 + gear[c]; h>>shift == 0 {
			return at + i + 1, h
		}
	}
	return -1, h
}

// Chunker cuts a stream into chunks. It reads into a buffer of its own, which
// Reset keeps, and allocates nothing for a chunk.
type Chunker struct {
	r          io.Reader
	buf        []byte
	start, end int // of what is in buf and not yet given out
	err        error
	looks      looks
}

// chunkerBuffer makes reads large; what is copied down to make room is at
// most maxChunk of it.
const chunkerBuffer = 4 * maxChunk

// Reset makes the Chunker start over with r.
func (c *Chunker) Reset(r io.Reader) {
	if c.buf == nil {
		c.buf = make([]byte, chunkerBuffer)
	}
	c.r, c.start, c.end, c.err = r, 0, 0, nil
	c.looks = looks{}
}

// Next gives the next chunk, which is good until Next is called again, and
// io.EOF behind the last one.
func (c *Chunker) Next() ([]byte, error) {
	c.ahead()
	if c.err != nil && c.err != io.EOF {
		return nil, c.err
	}
	if c.start == c.end {
		return nil, io.EOF
	}
	n := cut(c.buf[c.start:c.end])
	chunk := c.buf[c.start : c.start+n : c.start+n]
	c.start += n
	return chunk, nil
}

// ahead reads so far ahead that behind the next chunk there still is what Secret
// looks at again, unless the input ends before.
func (c *Chunker) ahead() {
	if c.end-c.start < maxChunk+lookBack && c.err == nil {
		c.fill()
	}
}

// fill reads until the buffer is full or the input at its end.
func (c *Chunker) fill() {
	c.looks.at = max(0, c.looks.at-c.start)
	c.end = copy(c.buf, c.buf[c.start:c.end])
	c.start = 0
	for empty := 0; c.end < len(c.buf) && c.err == nil; {
		var n int
		n, c.err = c.r.Read(c.buf[c.end:])
		c.end += n
		if empty++; n > 0 {
			empty = 0
		}
		if empty > 100 && c.err == nil {
			c.err = io.ErrNoProgress
		}
	}
}
