package clone

import (
	"io/fs"
	"syscall"
)

// owner is who a file belongs to, by number.
func owner(fi fs.FileInfo) (uid, gid int) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}
