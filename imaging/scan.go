package imaging

import (
	"context"
	"errors"
)

var errUnbuilt = errors.New("not built yet")

// ScanTree walks tree and gives sink everything that is in it.
func ScanTree(ctx context.Context, tree Tree, req ScanRequest, sink Sink) error { return errUnbuilt }
