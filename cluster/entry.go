package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Entry is one change as the log keeps it.
type Entry struct {
	Seq    uint64
	Time   time.Time // UTC
	Change Change
}

// entryVersion is the format that EncodeEntry writes. A change of any Change
// that an older doppel would misread needs a new one.
const entryVersion = 1

// maxEntry bounds an entry; the largest is an AddNodes of maxSeries nodes.
const maxEntry = 64 << 20

type wireEntry struct {
	Version int             `json:"v"`
	Seq     uint64          `json:"seq"`
	Time    time.Time       `json:"time"`
	Kind    string          `json:"kind"`
	Change  json.RawMessage `json:"change"`
}

// EncodeEntry writes an entry as one JSON object, so that a log can be read
// without doppel.
func EncodeEntry(e Entry) ([]byte, error) {
	c, err := json.Marshal(e.Change)
	if err != nil {
		return nil, fmt.Errorf("encoding entry %d: %w", e.Seq, err)
	}
	b, err := json.Marshal(wireEntry{Version: entryVersion, Seq: e.Seq, Time: e.Time.UTC(), Kind: e.Change.Kind(), Change: c})
	if err != nil {
		return nil, fmt.Errorf("encoding entry %d: %w", e.Seq, err)
	}
	return b, nil
}

// DecodeEntry reads what EncodeEntry wrote. It refuses what it does not know:
// an entry half understood would make two states that differ.
func DecodeEntry(b []byte) (Entry, error) {
	if len(b) > maxEntry {
		return Entry{}, fmt.Errorf("entry of %d bytes is larger than any can be", len(b))
	}
	var w wireEntry
	if err := strictJSON(b, &w); err != nil {
		return Entry{}, fmt.Errorf("reading entry: %w", err)
	}
	if w.Version != entryVersion {
		return Entry{}, fmt.Errorf("entry %d is of version %d, this doppel knows %d", w.Seq, w.Version, entryVersion)
	}
	if _, offset := w.Time.Zone(); offset != 0 {
		return Entry{}, fmt.Errorf("entry %d: its time is not UTC", w.Seq)
	}
	c, err := decodeChange(w.Kind, w.Change)
	if err != nil {
		return Entry{}, fmt.Errorf("entry %d: %w", w.Seq, err)
	}
	return Entry{Seq: w.Seq, Time: w.Time.UTC(), Change: c}, nil
}

func decodeChange(kind string, b []byte) (Change, error) {
	switch kind {
	case AddNodes{}.Kind():
		return decodeAs[AddNodes](b)
	case SetNode{}.Kind():
		return decodeAs[SetNode](b)
	case RemoveNode{}.Kind():
		return decodeAs[RemoveNode](b)
	case Sight{}.Kind():
		return decodeAs[Sight](b)
	case ForgetSighting{}.Kind():
		return decodeAs[ForgetSighting](b)
	case Assign{}.Kind():
		return decodeAs[Assign](b)
	case AutoAssign{}.Kind():
		return nil, errors.New("an auto-assign is never in a log")
	case Unassign{}.Kind():
		return decodeAs[Unassign](b)
	case OpenCollection{}.Kind():
		return decodeAs[OpenCollection](b)
	case CloseCollection{}.Kind():
		return decodeAs[CloseCollection](b)
	case Arm{}.Kind():
		return decodeAs[Arm](b)
	case Disarm{}.Kind():
		return decodeAs[Disarm](b)
	case BeginBoot{}.Kind():
		return decodeAs[BeginBoot](b)
	case Enrol{}.Kind():
		return decodeAs[Enrol](b)
	case BeginInstall{}.Kind():
		return decodeAs[BeginInstall](b)
	case ReportStage{}.Kind():
		return decodeAs[ReportStage](b)
	case Certify{}.Kind():
		return decodeAs[Certify](b)
	case Finish{}.Kind():
		return decodeAs[Finish](b)
	case Fail{}.Kind():
		return decodeAs[Fail](b)
	case Up{}.Kind():
		return decodeAs[Up](b)
	case EndRound{}.Kind():
		return decodeAs[EndRound](b)
	case PauseSync{}.Kind():
		return decodeAs[PauseSync](b)
	case EnlistNode{}.Kind():
		return decodeAs[EnlistNode](b)
	case PairSync{}.Kind():
		return decodeAs[PairSync](b)
	case TurnSync{}.Kind():
		return decodeAs[TurnSync](b)
	case HoldNode{}.Kind():
		return decodeAs[HoldNode](b)
	case OrderUpdate{}.Kind():
		return decodeAs[OrderUpdate](b)
	case BeginUpdate{}.Kind():
		return decodeAs[BeginUpdate](b)
	case ReportUpdate{}.Kind():
		return decodeAs[ReportUpdate](b)
	case EndUpdate{}.Kind():
		return decodeAs[EndUpdate](b)
	case CancelUpdate{}.Kind():
		return decodeAs[CancelUpdate](b)
	case PutLease{}.Kind():
		return decodeAs[PutLease](b)
	case DeleteLease{}.Kind():
		return decodeAs[DeleteLease](b)
	case Note{}.Kind():
		return decodeAs[Note](b)
	}
	return nil, fmt.Errorf("%q is no change this doppel knows", kind)
}

func decodeAs[C Change](b []byte) (Change, error) {
	var c C
	if err := strictJSON(b, &c); err != nil {
		return nil, fmt.Errorf("reading a change of kind %s: %w", c.Kind(), err)
	}
	return c, nil
}

// strictJSON reads exactly one JSON value with no unknown fields.
func strictJSON(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more follows the value")
	}
	return nil
}
