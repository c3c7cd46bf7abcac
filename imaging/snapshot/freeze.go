package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// From linux/fs.h.
const (
	fiFreeze = 3<<30 | 4<<16 | 'X'<<8 | 119
	fiThaw   = 3<<30 | 4<<16 | 'X'<<8 | 120
)

// runDir is where keepers have directories of their owners' names: what they
// mount is below, and what they freeze is written down there. It is gone with the
// boot, as are mounts and freezes.
const runDir = "/run/doppel"

// frozenFile is what a keeper has frozen, or is about to, in its directory.
const frozenFile = "frozen"

// frozenRecord tells which file systems are frozen.
type frozenRecord struct {
	Dir string `json:"dir"` // where it is mounted
	Dev uint64 `json:"dev"` // st_dev there
}

// writeRecords replaces what is written down.
func writeRecords(dir string, list []frozenRecord) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	tmp := path.Join(dir, frozenFile+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path.Join(dir, frozenFile))
}

// readRecords reads what a keeper has written down, nothing if there is
// nothing.
func readRecords(dir string) ([]frozenRecord, error) {
	b, err := os.ReadFile(path.Join(dir, frozenFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := parseRecords(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path.Join(dir, frozenFile), err)
	}
	return list, nil
}

func parseRecords(b []byte) (list []frozenRecord, err error) {
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, err
	}
	for _, r := range list {
		if !path.IsAbs(r.Dir) {
			return nil, fmt.Errorf("%q is no mount point", r.Dir)
		}
	}
	return list, nil
}

// freezeAt freezes the file system that the open directory fd is on: it is
// written out, and then whoever writes there waits. What is dirty is written out
// first, before anyone has to wait.
func freezeAt(fd int) error {
	if err := unix.Syncfs(fd); err != nil {
		return fmt.Errorf("write it out: %w", err)
	}
	err := unix.IoctlSetInt(fd, fiFreeze, 0)
	switch err {
	case unix.EBUSY:
		return errors.New("it is frozen already, by somebody else")
	case unix.EOPNOTSUPP, unix.ENOTTY:
		return errors.New("this kind of file system cannot be frozen")
	}
	return err
}

// thawAt thaws it. It is no error if it is not frozen.
func thawAt(fd int) error {
	if err := unix.IoctlSetInt(fd, fiThaw, 0); err != nil && err != unix.EINVAL {
		return err
	}
	return nil
}

// deadDirs lists the directories below runDir whose owners live no more.
func deadDirs() []string {
	list, _ := filepath.Glob(path.Join(runDir, prefix+"*")) // its pattern is good
	var dead []string
	for _, dir := range list {
		if o, ok := parseOwner(path.Base(dir)); ok && !o.alive() {
			dead = append(dead, dir)
		}
	}
	return dead
}

// sweepRun thaws what dead owners have left frozen and removes their
// directories.
func sweepRun() error {
	var errs []error
	for _, dir := range deadDirs() {
		list, err := readRecords(dir)
		for _, r := range list {
			err = errors.Join(err, thawRecorded(r))
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, removeRun(dir))
	}
	return errors.Join(errs...)
}

func thawRecorded(r frozenRecord) error {
	fd, err := openDir(r.Dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Dev != r.Dev {
		return err // something else is mounted there by now
	}
	if err := thawAt(fd); err != nil {
		return fmt.Errorf("thaw %s, which a capture that was killed had frozen: %w", r.Dir, err)
	}
	return nil
}

// removeRun removes a keeper's directory. Only empty directories and the record
// are: whatever is mounted there stays as it is.
func removeRun(dir string) error {
	if !strings.HasPrefix(dir, runDir+"/"+prefix) {
		return fmt.Errorf("%s is none of a keeper's directories", dir)
	}
	for _, name := range []string{frozenFile, frozenFile + ".new", mountDir, ""} {
		if err := os.Remove(path.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	_ = os.Remove(runDir) // unless somebody else has something there
	return nil
}
