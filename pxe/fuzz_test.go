package pxe

import (
	"bytes"
	"compress/gzip"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"doppel/dhcpd"
)

// FuzzHandler asks for any path, with any words, from any address: nothing but
// the boot files and scripts goes out, nobody but the armed node's machine is
// given an installer, and a script holds no line that the caller wrote.
func FuzzHandler(f *testing.F) {
	digest := strings.Repeat("0a", 32)
	for _, s := range []string{
		"/boot/ipxe?mac=52:54:00:00:00:01&uuid=&platform=efi&buildarch=x86_64", "/boot/ipxe?mac=52:54:00:00:00:02&since=1777860000",
		"/boot/ipxe?mac=52-54-00-00-00-01&since=-9223372036854775808&platform=pcbios", "/boot/ipxe?mac=%0a%0dsanboot&buildarch=arm64",
		"/boot/snponly.efi", "/boot/", "/boot/../../../etc/shadow", "/boot/..%2f..%2f..%2fetc%2fshadow", "/boot/%2e%2e/%2e%2e/etc/shadow",
		"/boot/" + digest + "/vmlinuz", "/boot/" + digest + "/../../inputs", "/boot/" + digest + "/initrd%00", "/boot//etc/shadow", "/../etc/shadow",
	} {
		f.Add(s, []byte{10, 77, 0, 11}, "")
		f.Add(s, []byte{10, 77, 0, 200}, "bytes=0-")
	}
	c, _ := testCluster(f)
	h := testHandler(f, c)
	arm(f, c)
	f.Fuzz(func(t *testing.T, target string, from []byte, ranges string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		addr, ok := netip.AddrFromSlice(from)
		if !ok {
			return
		}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.URL, r.RemoteAddr = u, netip.AddrPortFrom(addr, 4711).String()
		r.Header.Set("Range", ranges)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		text := w.Body.String()
		switch w.Code {
		case http.StatusOK:
			switch {
			case slices.Contains([]string{"a kernel", "an initrd", "a loader"}, text):
			case strings.HasPrefix(text, "#!ipxe\n"):
				if strings.Contains(text, "doppel.boot=") && addr.Unmap() != ownAddr {
					t.Fatalf("%q from %v is given an installer", target, addr)
				}
				for line := range strings.Lines(text) {
					if word, _, _ := strings.Cut(strings.TrimSpace(line), " "); !slices.Contains(scriptWords, word) {
						t.Fatalf("%q from %v: %q is no line of ours", target, addr, line)
					}
				}
			default:
				t.Fatalf("%q from %v gives %q", target, addr, text)
			}
		case http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable, http.StatusNotFound, http.StatusBadRequest, http.StatusForbidden:
			if strings.Contains(text, "root:") {
				t.Fatalf("%q gives %q", target, text)
			}
		default:
			t.Fatalf("%q from %v: %d %q", target, addr, w.Code, text)
		}
	})
}

// scriptWords are the words that a line of a script begins with.
var scriptWords = []string{"#!ipxe", "echo", ":again", ":lost", "sleep", "chain", "dhcp", "goto", "kernel", "initrd", "boot", "imgfree", "sanboot", "exit"}

// FuzzPolicy asks about any machine: what it is told is one of the few answers
// there are, and fits into the fields of DHCP.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte{0x52, 0x54, 0, 0, 0, 1}, uint16(7), uint16(0), true, false, false, "PXEClient:Arch:00007:UNDI:003016", "uuid")
	f.Add([]byte{0x52, 0x54, 0, 0, 0, 2}, uint16(0), uint16(9), false, true, true, "HTTPClient\x00\xff\x1b[2J", "\x00")
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, uint16(65535), uint16(11), true, true, true, strings.Repeat("x", 300), strings.Repeat("y", 300))
	c, _ := testCluster(f)
	arm(f, c)
	p := &Policy{State: c, Server: plain, Loaders: Loaders{ArchBIOS: "/x", ArchX8664: "/y"}}
	f.Fuzz(func(t *testing.T, mac []byte, arch, second uint16, rom, httpBoot, ipxe bool, class, uuid string) {
		q := dhcpd.Query{Arch: []uint16{arch, second}, PXE: rom, HTTPBoot: httpBoot, IPXE: ipxe, VendorClass: class, UUID: uuid}
		copy(q.MAC[:], mac)
		a, err := p.Policy(t.Context(), q)
		if err != nil {
			return // a machine that cannot be noted is told nothing
		}
		if len(a.BootFile) > 127 || len(a.Vendor60) > 10 || a.Pool && a.Addr.IsValid() {
			t.Fatalf("%+v is told %+v", q, a)
		}
		if a.Addr.IsValid() && (a.Addr != ownAddr || a.Hostname != "node001" || q.MAC != dhcpd.MAC(known)) {
			t.Fatalf("%+v is given %v", q, a.Addr)
		}
		if !strings.HasPrefix(a.BootFile, "http://10.77.0.1:8480/boot/") && !slices.Contains([]string{"", LoaderBIOS, LoaderUEFI}, a.BootFile) {
			t.Fatalf("%+v is sent to %q", q, a.BootFile)
		}
	})
}

// FuzzUnpack unpacks kernel modules as images may hold them, and finds out
// what an agent is linked with.
func FuzzUnpack(f *testing.F) {
	plain := bytes.Repeat([]byte("\x7fELF module "), 200)
	var gz, zst, xzb bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		f.Fatal(err)
	}
	x, err := xz.WriterConfig{DictCap: 1 << 16}.NewWriter(&xzb)
	if err != nil {
		f.Fatal(err)
	}
	for _, w := range []interface {
		Write([]byte) (int, error)
		Close() error
	}{g, z, x} {
		if _, err := w.Write(plain); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
	}
	for kind, b := range [][]byte{gz.Bytes(), zst.Bytes(), xzb.Bytes(), plain} {
		if got, err := unpack("x.ko"+packed[kind], b); err != nil || !bytes.Equal(got, plain) {
			f.Fatalf("%q: %d bytes, %v", packed[kind], len(got), err)
		}
		f.Add(uint8(kind), b)
		f.Add(uint8(kind), b[:len(b)/2])
		f.Add(uint8(kind), slices.Concat(b, b))
		spoilt := bytes.Clone(b)
		spoilt[len(b)*2/3] ^= 0x40
		f.Add(uint8(kind), spoilt)
	}
	f.Fuzz(func(t *testing.T, kind uint8, b []byte) {
		got, err := unpack("x.ko"+packed[int(kind)%len(packed)], b)
		if err == nil && len(got) > maxFile {
			t.Fatalf("%s gives %d bytes", hex.EncodeToString(b), len(got))
		}
		_ = checkStatic(b) // an error, or none: it comes back
	})
}

var packed = []string{".gz", ".zst", ".xz", ""}
