package tarball

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"doppel/imaging"
	"doppel/imaging/store"
)

// What unpacking comes to, whatever the order of members and however often
// they are there. shape is path, kind and target or content of each entry.
func TestImportTrees(t *testing.T) {
	file := func(name, data string) raw { return raw{name: name, kind: '0', data: data} }
	dir := func(name string) raw { return raw{name: name, kind: '5', mode: "0000750"} }
	link := func(name, to string) raw { return raw{name: name, kind: '1', link: to} }
	symlink := func(name, to string) raw { return raw{name: name, kind: '2', link: to} }
	cases := map[string]struct {
		members []any
		want    string
		notes   int
	}{
		"root and dots":            {[]any{dir("./"), file("./a", "1"), dir("./d/"), file("d/./b", "2")}, ". d|a f 1|d d|d/b f 2", 0},
		"missing parents":          {[]any{file("x/y/z", "1")}, ". d|x d|x/y d|x/y/z f 1", 3},
		"parents afterwards":       {[]any{file("x/z", "1"), dir("x"), dir(".")}, ". d|x d|x/z f 1", 0},
		"any order":                {[]any{file("b/c", "1"), file("a", "2"), dir("b-a"), dir("b"), dir(".")}, ". d|a f 2|b d|b/c f 1|b-a d", 0},
		"leading slashes":          {[]any{dir("/"), file("///a", "1"), link("/b", "/a")}, ". d|a f 1|b h a", 1},
		"last wins":                {[]any{dir("."), file("a", "old"), file("a", "new")}, ". d|a f new", 0},
		"file over link":           {[]any{dir("."), symlink("a", "x"), file("a", "new")}, ". d|a f new", 0},
		"directory over file":      {[]any{dir("."), file("a", "x"), dir("a"), file("a/b", "1")}, ". d|a d|a/b f 1", 0},
		"file over an empty one":   {[]any{dir("."), dir("a"), file("a", "x")}, ". d|a f x", 0},
		"links":                    {[]any{dir("."), file("b", "1"), link("c", "b")}, ". d|b f 1|c h b", 0},
		"first name by order":      {[]any{dir("."), file("z", "1"), link("a", "z"), link("m", "./z")}, ". d|a f 1|m h a|z h a", 0},
		"link before its target":   {[]any{dir("."), link("a", "b"), file("b", "1")}, ". d|a f 1|b h a", 0},
		"chain before its target":  {[]any{dir("."), link("a", "b"), link("b", "c"), link("d", "a"), file("c", "1")}, ". d|a f 1|b h a|c h a|d h a", 0},
		"link to itself":           {[]any{dir("."), file("a", "1"), link("a", "a")}, ". d|a f 1", 0},
		"target replaced":          {[]any{dir("."), file("a", "old"), link("b", "a"), file("a", "new")}, ". d|a f new|b f old", 0},
		"link replaced":            {[]any{dir("."), file("a", "1"), link("b", "a"), file("b", "2")}, ". d|a f 1|b f 2", 0},
		"link to a symbolic link":  {[]any{dir("."), symlink("s", "/x/../y"), link("t", "s")}, ". d|s l /x/../y|t h s", 0},
		"own state":                {[]any{dir("."), file("etc/doppel/ca.key", "secret"), dir("etc/doppel/node"), dir("etc/doppel"), file("etc/doppel2", "1")}, ". d|etc d|etc/doppel o|etc/doppel2 f 1", 2},
		"v7 directory":             {[]any{dir("."), raw{name: "old/", magic: "\x00\x00\x00\x00\x00\x00\x00\x00"}, raw{name: "old/f", magic: "\x00\x00\x00\x00\x00\x00\x00\x00", data: "1"}}, ". d|old d|old/f f 1", 0},
		"directory that says size": {[]any{dir("."), raw{name: "d", kind: '5', size: "00000001000"}, file("f", "1")}, ". d|d d|f f 1", 0},
		"dump":                     {[]any{dir("."), raw{name: "d/", kind: 'D', data: "Yf\x00\x00"}, file("d/f", "1")}, ". d|d d|d/f f 1", 0},
		"label":                    {[]any{raw{name: "backup of monday", kind: 'V'}, dir("."), file("f", "1")}, ". d|f f 1", 0},
		"long names": {[]any{dir("."), raw{name: "././@LongLink", kind: 'L', magic: "ustar  \x00", data: strings.Repeat("n", 200) + "\x00"},
			raw{name: "n", kind: '0', magic: "ustar  \x00", data: "1"},
			raw{name: "././@LongLink", kind: 'K', magic: "ustar  \x00", data: strings.Repeat("n", 200) + "\x00"},
			raw{name: "l", kind: '1', magic: "ustar  \x00"}}, ". d|l f 1|" + strings.Repeat("n", 200) + " h l", 0},
		"prefix":       {[]any{dir("."), dir("p"), raw{name: "f", prefix: "p", kind: '0', data: "1"}}, ". d|p d|p/f f 1", 0},
		"what follows": {[]any{dir("."), make([]byte, 1024), file("f", "1")}, ". d", 1},
	}
	c := openCatalog(t)
	for name, k := range cases {
		t.Run(name, func(t *testing.T) {
			r, err := importBytes(t, c, "x", archive(k.members...))
			must(t, err)
			m, vault := manifest(t, c, "x")
			var shape []string
			for _, e := range m.List.All() {
				switch {
				case e.Opaque:
					shape = append(shape, e.Path+" o")
				case e.Kind == imaging.Directory:
					shape = append(shape, e.Path+" d")
				case e.Kind == imaging.Symlink:
					shape = append(shape, e.Path+" l "+e.Target)
				case e.Kind == imaging.HardLink:
					shape = append(shape, e.Path+" h "+e.Target)
				default:
					shape = append(shape, e.Path+" f "+content(t, m, vault, e.Path))
				}
			}
			if got := strings.Join(shape, "|"); got != k.want {
				t.Errorf("got %s\nwant %s", got, k.want)
			}
			if len(r.Notes) != k.notes {
				t.Errorf("notes %+v", r.Notes)
			}
		})
	}
}

// What an extended header says counts, a global one for all until it is taken
// back.
func TestExtendedHeaders(t *testing.T) {
	global := func(records ...record) []byte {
		var b []byte
		for _, r := range records {
			b = appendRecord(b, r)
		}
		return raw{name: "g", kind: typeGlobal, data: string(b)}.bytes()
	}
	list, contents, err := members(t, archive(
		global(record{"comment", "abc"}, record{"uid", "7"}),
		paxed(raw{name: "short", kind: '0', data: "1"}, record{"path", "long/\xff\xfe"}, record{"mtime", "-1.25"}, record{"gid", "4294967294"}),
		raw{name: "b", kind: '0', uid: "0000005"},
		global(record{"uid", ""}),
		raw{name: "c", kind: '0', uid: "0000005"},
		paxed(raw{name: "d", kind: '0', size: "77777777777", data: "ten bytes!"}, record{"size", "10"}, record{"mtime", "1.0000000019"}),
		raw{name: "e", kind: '0', mtime: "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", uid: "\x80\x00\x00\x00\xff\xff\xff\xfe"},
	))
	must(t, err)
	type about struct {
		name     string
		uid, gid uint32
		time     imaging.Time
		size     int64
	}
	var got []about
	for _, m := range list {
		got = append(got, about{m.Name, m.UID, m.GID, m.MTime, m.Size})
	}
	want := []about{
		{"long/\xff\xfe", 7, 4294967294, imaging.Time{Sec: -2, Nsec: 750_000_000}, 1},
		{"b", 7, 0, imaging.Time{}, 0},
		{"c", 5, 0, imaging.Time{}, 0},
		{"d", 0, 0, imaging.Time{Sec: 1, Nsec: 1}, 10},
		{"e", 4294967294, 0, imaging.Time{Sec: -1}, 0},
	}
	if !slices.Equal(got, want) || contents[3] != "ten bytes!" {
		t.Errorf("got  %+v\nwant %+v\n%q", got, want, contents)
	}
}

// Times are written so that they are read as they were.
func TestTimes(t *testing.T) {
	for text, want := range map[string]imaging.Time{
		"0": {}, "-1": {Sec: -1}, "-0.5": {Sec: -1, Nsec: 500_000_000}, "-1.000000001": {Sec: -2, Nsec: 999_999_999},
		"9000000000.999999999": {Sec: 9_000_000_000, Nsec: 999_999_999}, "1.1": {Sec: 1, Nsec: 100_000_000},
		"-9223372036854775807": {Sec: -1<<63 + 1},
	} {
		got, err := paxTime(text)
		if err != nil || *got != want || timeText(want) != text {
			t.Errorf("%s: %+v, %v; written %s", text, got, err, timeText(want))
		}
	}
	for _, text := range []string{"x", "1.x", "1e9", "--1", "1.-1", "99999999999999999999", "-9223372036854775808"} {
		if got, err := paxTime(text); err == nil {
			t.Errorf("%q is taken for %+v", text, got)
		}
	}
}

// A key behind more than is read ahead makes the whole file one for heads: what
// came in front of it is stored again.
func TestImportLateSecret(t *testing.T) {
	before := noise(5<<20, 1)
	mail := string(before) + "\n-----BEGIN PRIVATE KEY-----\n" + strings.Repeat("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n", 3) + "canary"
	c := openCatalog(t)
	r, err := importBytes(t, c, "x", archive(
		raw{name: "./", kind: '5'}, raw{name: "mail", kind: '0', data: mail}, raw{name: "plain", kind: '0', data: string(before)},
	))
	must(t, err)
	if want := []imaging.SecretFile{{Path: "mail", Class: "head", Detected: true}}; !slices.Equal(r.Secrets, want) {
		t.Errorf("secrets %+v", r.Secrets)
	}
	m, vault := manifest(t, c, "x")
	if content(t, m, vault, "mail") != mail || content(t, m, vault, "plain") != string(before) {
		t.Error("the files are others")
	}
	for ref := range m.Refs() {
		if ref.Entry.Path != "mail" {
			continue
		}
		b, err := vault.Chunk(t.Context(), ref.Ref)
		must(t, err)
		if ref.Audience != store.Head {
			t.Errorf("a part of it is for %v", ref.Audience)
		}
		if bytes.Contains(b, []byte("PRIVATE KEY")) && vault.Has(store.Ref{Audience: store.Cluster, ID: ref.ID}) {
			t.Error("the key is there for the cluster")
		}
	}
}

// A file is of the class of its first name in canonical order, in whichever
// order the names come; what it holds is sealed for that class.
func TestImportClasses(t *testing.T) {
	pem := "-----BEGIN PRIVATE KEY-----\n" + strings.Repeat("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7\n", 3)
	c := openCatalog(t)
	r, err := importBytes(t, c, "x", archive(
		raw{name: "./", kind: '5'}, raw{name: "etc", kind: '5'}, raw{name: "etc/ssh", kind: '5'}, raw{name: "a", kind: '5'}, raw{name: "z", kind: '5'},
		raw{name: "z/copy", kind: '0', data: "host key"}, raw{name: "etc/ssh/ssh_host_rsa_key", kind: '1', link: "z/copy"},
		raw{name: "etc/krb5.keytab", kind: '0', data: "keytab"}, raw{name: "a/innocent", kind: '1', link: "etc/krb5.keytab"},
		raw{name: "etc/shadow", kind: '0', data: "root:x"},
		raw{name: "z/key.pem", kind: '0', data: pem},
		raw{name: "z/twice", kind: '0', data: pem}, raw{name: "a/key", kind: '1', link: "z/twice"},
	))
	must(t, err)
	want := []imaging.SecretFile{
		{Path: "a/key", Class: "head", Detected: true},
		{Path: "etc/krb5.keytab", Class: "head"}, // by its own name; what it holds goes by a/innocent
		{Path: "etc/shadow", Class: "cluster"},
		{Path: "etc/ssh/ssh_host_rsa_key", Class: "node"},
		{Path: "z/copy", Class: "node"},
		{Path: "z/key.pem", Class: "head", Detected: true},
		{Path: "z/twice", Class: "head"},
	}
	if !slices.Equal(r.Secrets, want) {
		t.Errorf("secrets %+v", r.Secrets)
	}
	m, vault := manifest(t, c, "x")
	if got := content(t, m, vault, "etc/ssh/ssh_host_rsa_key"); got != "host key" {
		t.Errorf("the host key is %q", got)
	}
	if got := content(t, m, vault, "a/innocent"); got != "keytab" {
		t.Errorf("the keytab is %q", got)
	}
	if vault.Has(store.Ref{Audience: store.Cluster, ID: store.Sum([]byte(pem))}) {
		t.Error("a private key is there for the cluster")
	}
	must(t, c.Verify(t.Context(), nil, true, func(f imaging.ImageFault) { t.Errorf("fault: %v", f) }))

	// A capture of what was unpacked finds the same.
	dir := t.TempDir()
	_, err = imaging.Apply(t.Context(), m, vault, dir, imaging.ApplyOptions{})
	must(t, err)
	again, err := imaging.Capture(t.Context(), c, imaging.NewLocal(dir), imaging.CaptureOptions{Name: "y", Root: dir})
	must(t, err)
	if slices.SortFunc(again.Secrets, func(a, b imaging.SecretFile) int { return strings.Compare(a.Path, b.Path) }); len(again.Secrets) != len(r.Secrets) {
		t.Errorf("a capture finds %+v", again.Secrets)
	}
	captured, _ := manifest(t, c, "y")
	if changes := imaging.DiffManifests(m, captured); len(changes) > 0 {
		t.Errorf("a capture differs: %+v", changes)
	}
}

// What files in the archive say of their host.
func TestImportFacts(t *testing.T) {
	elf := "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x03\x00\xb7\x00" + "rest"
	c := openCatalog(t)
	_, err := importBytes(t, c, "x", archive(
		raw{name: "./", kind: '5'},
		raw{name: "bin", kind: '2', link: "usr/bin"}, raw{name: "usr/bin/dash", kind: '0', data: elf}, raw{name: "usr/bin/sh", kind: '2', link: "dash"},
		raw{name: "etc/hostname", kind: '0', data: "# set by hand\n head7 \n"},
		raw{name: "etc/os-release", kind: '2', link: "../usr/lib/os-release"},
		raw{name: "usr/lib/os-release", kind: '0', data: "ID=debian\nVERSION_ID=\"12\"\n"},
	))
	must(t, err)
	m, _ := manifest(t, c, "x")
	if m.Facts.Hostname != "head7" || m.Facts.Arch != "aarch64" || m.Facts.OSRelease["VERSION_ID"] != "12" || m.Layout != nil || m.Facts.LayoutNote == "" {
		t.Errorf("facts %+v", m.Facts)
	}
}

// Names in ACLs are the archive's own first; nobody's are lost, and said.
func TestImportACL(t *testing.T) {
	c := openCatalog(t)
	acl := func(name, text string) []byte {
		return paxed(raw{name: name, kind: '0', mode: "0000644"}, record{"SCHILY.acl.access", text})
	}
	r, err := importBytes(t, c, "x", archive(
		raw{name: "./", kind: '5'},
		acl("named", "user::rw-\nuser:bin:r--\ngroup::---\nmask::r--\nother::r--\n"),
		acl("star", "user::rw-,user:nosuch:rw-:1234,group::r--,group:staff:r-x:77,mask::rw-,other::---"),
		acl("lost", "user::rw-\nuser:nosuch:r--\ngroup::r--\nmask::r--\nother::r--\n"),
		acl("mode", "user::rwx\ngroup::r-x\nother::---\n"),
		raw{name: "etc/passwd", kind: '0', data: "root:x:0:0::/:/bin/sh\nbin:x:4711:2::/:/bin/sh\n"},
	))
	must(t, err)
	m, _ := manifest(t, c, "x")
	want := map[string]string{
		"named": "user::rw-\nuser:4711:r--\ngroup::---\nmask::r--\nother::r--\n",
		"star":  "user::rw-\nuser:1234:rw-\ngroup::r--\ngroup:77:r-x\nmask::rw-\nother::---\n",
		"lost":  "", "mode": "",
	}
	for name, text := range want {
		e := entry(t, m, name)
		got := ""
		for _, x := range e.Xattrs {
			list, ok := decodeACL(x.Value)
			if got, _ = aclText(list); !ok || x.Name != aclAccess {
				t.Errorf("%s has %q", name, x.Name)
			}
		}
		if got != text {
			t.Errorf("%s: %q", name, got)
		}
	}
	if mode := entry(t, m, "star").Mode; mode != 0o660 {
		t.Errorf("the mode beside a mask is %o", mode)
	}
	if mode := entry(t, m, "mode").Mode; mode != 0o750 {
		t.Errorf("an ACL of three entries makes the mode %o", mode)
	}
	if len(r.Lost) != 1 || r.Lost[0].Path != "lost" || !r.Partial() {
		t.Errorf("lost: %+v", r.Lost)
	}
}

// The same archive again makes no new version; another name of the same image
// as a host's leaves what captures of that know.
func TestImportAgain(t *testing.T) {
	c := openCatalog(t)
	b := archive(raw{name: "./", kind: '5'}, raw{name: "f", kind: '0', data: string(noise(300<<10, 1))})
	first, err := importBytes(t, c, "x", b)
	must(t, err)
	again, err := importBytes(t, c, "x", b)
	must(t, err)
	if !again.Unchanged || again.Version != 1 || again.Digest != first.Digest || again.BytesSent != 0 || again.BytesAdded != 0 {
		t.Errorf("again: %+v", again)
	}
	dir := t.TempDir()
	fill(t, dir+"/f", noise(300<<10, 1))
	report := func() *imaging.CaptureReport {
		r, err := imaging.Capture(t.Context(), c, imaging.NewLocal(dir, imaging.WithClock(later)), imaging.CaptureOptions{Name: "x", Root: dir})
		must(t, err)
		return r
	}
	report()
	_, err = importBytes(t, c, "x", b)
	must(t, err)
	if r := report(); r.BytesRead != 0 {
		t.Errorf("after an import a capture reads %d bytes", r.BytesRead)
	}
}
