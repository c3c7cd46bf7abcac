package clone

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
)

// recordMark begins a record on a disk.
const recordMark = "doppel record 1\n"

// encodeRecord writes a record as it is kept on the disk: the mark, the length
// and the digest of the JSON, the JSON, zeros.
func encodeRecord(r Record) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	b := binary.LittleEndian.AppendUint32([]byte(recordMark), uint32(len(body)))
	b = append(append(b, sum[:]...), body...)
	if len(b) > recordBytes {
		return nil, fmt.Errorf("%d partitions are too many for the record", len(r.Formatted))
	}
	return append(b, make([]byte, recordBytes-len(b))...), nil
}

// decodeRecord reads what encodeRecord wrote; false for anything else.
func decodeRecord(b []byte) (Record, bool) {
	const head = len(recordMark) + 4 + sha256.Size
	if len(b) < head || !bytes.HasPrefix(b, []byte(recordMark)) {
		return Record{}, false
	}
	n := binary.LittleEndian.Uint32(b[len(recordMark):])
	if uint64(n) > uint64(len(b)-head) {
		return Record{}, false
	}
	body := b[head:][:n]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(recordMark)+4:head]) {
		return Record{}, false
	}
	var r Record
	if err := json.Unmarshal(body, &r); err != nil {
		return Record{}, false
	}
	return r, true
}
