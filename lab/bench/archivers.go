package bench

import (
	"fmt"
	"path/filepath"
)

// archiver is a peer that keeps deduplicated archives. All of them read the
// head's tree where it lies and write to a repository beside it: unlike doppel
// they pay for no SSH, and borg and casync encrypt nothing.
type archiver struct {
	name, title string
	dir, first  string // of its repository and its cache; a copy of it after the first archive
	repository  string
	before      string                      // the repository after the first archive
	init        string                      // the command that makes an empty repository
	create      func(archive string) string // the command that adds the head's tree as an archive
	restore     func(into string) string    // the command that restores the archive named first
}

// archiverNames are the commands of the archivers.
var archiverNames = []string{"restic", "borg", "casync"}

func (b *bench) archivers() []archiver {
	restic := b.archiver("restic", "restic backup, local, no SSH")
	command := fmt.Sprintf("RESTIC_PASSWORD=bench RESTIC_CACHE_DIR=%s restic -q -r %s", quote(filepath.Join(restic.dir, "cache")), quote(restic.repository))
	restic.init += command + " init"
	restic.create = func(archive string) string {
		return fmt.Sprintf("%s backup --one-file-system --host head --tag %s %s", command, archive, quote(b.tree))
	}
	restic.restore = func(into string) string { return command + " restore latest --tag first --target " + quote(into) }

	borg := b.archiver("borg", "borg create -C zstd,3, local, no SSH")
	env := fmt.Sprintf("BORG_BASE_DIR=%s BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes borg", quote(borg.dir))
	borg.init += fmt.Sprintf("%s init -e none %s", env, quote(borg.repository))
	borg.create = func(archive string) string {
		return fmt.Sprintf("%s create -C zstd,3 --one-file-system --numeric-ids %s::%s %s", env, quote(borg.repository), archive, quote(b.tree))
	}
	borg.restore = func(into string) string {
		return fmt.Sprintf("cd %s && %s extract --numeric-ids %s::first", quote(into), env, quote(borg.repository))
	}

	casync := b.archiver("casync", "casync make, local, no SSH")
	index := func(archive string) string { return quote(filepath.Join(casync.repository, archive+".caidx")) }
	store := "--store=" + quote(filepath.Join(casync.repository, "chunks"))
	casync.init += "mkdir " + quote(casync.repository)
	casync.create = func(archive string) string {
		return fmt.Sprintf("casync make %s %s %s", store, index(archive), quote(b.tree))
	}
	casync.restore = func(into string) string {
		return fmt.Sprintf("casync extract %s %s %s", store, index("first"), quote(filepath.Join(into, "head")))
	}
	return []archiver{restic, borg, casync}
}

func (b *bench) archiver(name, title string) archiver {
	dir := b.dir(name)
	return archiver{
		name: name, title: title, dir: dir, first: dir + ".first", repository: filepath.Join(dir, "repository"), before: filepath.Join(dir+".first", "repository"),
		init: fmt.Sprintf("rm -rf %[1]s && mkdir %[1]s && ", quote(dir)),
	}
}
