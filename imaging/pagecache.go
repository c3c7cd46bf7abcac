package imaging

import (
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a capture reads stays in the page cache, in the place of what the head
// is using. So what had to be fetched from the disk for the capture is given
// back, and what was there before is left as it is.
//
// Finding out costs a cachestat(2) of 0.2 µs for a small file and some 10 ns
// for each of its pages that is there, which is a hundredth of what reading and
// hashing it costs at most. Kernels before 6.5 have mincore(2) alone, at 2.5 µs
// with the mapping it needs: there, files below mincoreLeast are not asked
// about, and stay in the cache.
const (
	mincoreLeast = 256 << 10 // bytes
	dropBehind   = 8 << 20   // bytes read before they are given back
	mincoreStep  = 64 << 20  // bytes looked at in one mapping
	maxColdRuns  = 1 << 14   // in one file; what is behind that many stays
)

// plainCaches are the file systems whose files have their pages themselves.
// Those of overlayfs have none, and giving them back drops the pages of the
// file beneath, which cachestat did not see; others (a memory file system, the
// network's) have nothing to be given back, or to be told.
var plainCaches = []int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.MSDOS_SUPER_MAGIC, unix.REISERFS_SUPER_MAGIC}

// pageCache knows of which file systems of a tree the pages can be given back.
type pageCache struct {
	mu    sync.Mutex
	plain map[uint64]bool // by device
}

// manages tells whether the pages of the open file can be given back.
func (c *pageCache) manages(fd int, dev uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	plain, known := c.plain[dev]
	if !known {
		var st unix.Statfs_t
		plain = unix.Fstatfs(fd, &st) == nil && slices.Contains(plainCaches, int64(st.Type))
		if c.plain == nil {
			c.plain = map[uint64]bool{}
		}
		c.plain[dev] = plain
	}
	return plain
}

// coldRuns are those runs of a file that are not in the page cache, in whole
// pages. Where it cannot be told there are none.
func (c *pageCache) coldRuns(fd int, st *unix.Stat_t) []Extent {
	if st.Size == 0 || !c.manages(fd, st.Dev) {
		return nil
	}
	page := int64(unix.Getpagesize())
	pages := (st.Size + page - 1) / page
	var seen unix.Cachestat_t
	err := unix.Cachestat(uint(fd), &unix.CachestatRange{Len: uint64(st.Size)}, &seen, 0)
	switch {
	case err == nil && seen.Cache >= uint64(pages), err != nil && st.Size < mincoreLeast:
		return nil
	case err == nil && seen.Cache == 0:
		return []Extent{{0, pages * page}}
	}
	return absent(fd, st.Size)
}

// absent asks mincore which pages of a file are not in the cache.
func absent(fd int, size int64) []Extent {
	page := int64(unix.Getpagesize())
	var runs []Extent
	in := make([]byte, mincoreStep/page)
	for at := int64(0); at < size && len(runs) < maxColdRuns; at += mincoreStep {
		n := min(size-at, mincoreStep)
		m, err := unix.Mmap(fd, at, int(n), unix.PROT_NONE, unix.MAP_SHARED)
		if err != nil {
			return nil
		}
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(m))), uintptr(n), uintptr(unsafe.Pointer(unsafe.SliceData(in))))
		if unix.Munmap(m) != nil || errno != 0 {
			return nil
		}
		for i := range (n + page - 1) / page {
			if in[i]&1 != 0 {
				continue
			}
			from := at + i*page
			if last := len(runs) - 1; last >= 0 && runs[last].Offset+runs[last].Length == from {
				runs[last].Length += page
			} else {
				runs = append(runs, Extent{from, page})
			}
		}
	}
	return runs
}

// dropPages drops the pages of the cold runs in front of end, from where on
// they have not been dropped yet.
func dropPages(fd int, cold []Extent, from, end int64) {
	for _, x := range cold {
		start, stop := max(x.Offset, from), min(x.Offset+x.Length, end)
		if start < stop {
			unix.Fadvise(fd, start, stop-start, unix.FADV_DONTNEED)
		}
	}
}
