package pxe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"doppel/cluster"
	"doppel/imaging/store"
)

// Patience is how long a machine that was assigned while it waited goes on
// waiting for its deploy; after that it starts its own disk.
const Patience = 30 * time.Minute

// buildPatience is how long iPXE is kept without an answer while its installer
// is made; after that it is told to come again.
const buildPatience = 45 * time.Second

// Handler serves everything below /boot/ by plain HTTP.
type Handler struct {
	State      State
	Installers Installers
	Loaders    Loaders
	Dir        string         // cacheDir of BuildBoot
	HTTP       netip.AddrPort // of this service, as machines reach it
	TLS        netip.AddrPort // of the TLS service, as machines reach it
	Log        *slog.Logger   // nil: say nothing
}

func (h *Handler) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, ok := strings.CutPrefix(r.URL.Path, "/boot/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	// A script may begin a boot, so looking at its head is not offered.
	if r.Method != http.MethodGet && (r.Method != http.MethodHead || name == "ipxe") {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	if name == "ipxe" {
		h.serveScript(w, r)
		return
	}
	if digest, file, ok := strings.Cut(name, "/"); ok {
		h.serveBoot(w, r, digest, file)
		return
	}
	for a, path := range h.Loaders {
		if n := h.Loaders.name(a); n != "" && n == name {
			h.serveFile(w, r, path)
			return
		}
	}
	http.NotFound(w, r)
}

// serveBoot serves a kernel or an initramfs, whose names are digests.
func (h *Handler) serveBoot(w http.ResponseWriter, r *http.Request, digest, file string) {
	id, err := store.ParseID(digest)
	if err != nil || digest != id.Hex() || (file != kernelFile && file != initrdFile) {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("ETag", `"`+digest+`"`)
	w.Header().Set("Cache-Control", "public, immutable, max-age=31536000")
	h.serveFile(w, r, filepath.Join(h.Dir, digest, file))
}

func (h *Handler) serveFile(w http.ResponseWriter, r *http.Request, path string) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		http.NotFound(w, r)
		return
	}
	if err != nil {
		h.log().Error("boot file cannot be opened", "path", path, "err", err)
		http.Error(w, "the file cannot be read", http.StatusInternalServerError)
		return
	}
	defer f.Close() // only read
	// iPXE wants a Content-Length to show how far it is, and takes no chunked
	// coding from before 2013; ServeContent gives both that and ranges.
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, f)
}

// serveScript answers iPXE. The MAC in its question is believed only when the
// address it asks from was leased to that MAC.
func (h *Handler) serveScript(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	mac, err := cluster.ParseMAC(q.Get("mac"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if err := h.checkLease(r.RemoteAddr, mac); err != nil {
		h.log().Warn("boot script refused", "mac", mac, "from", r.RemoteAddr, "err", err)
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	arch := archOfIPXE(q.Get("platform"), q.Get("buildarch"))
	text := h.script(r.Context(), mac, arch, q.Get("since"))
	w.Header().Set("Content-Type", "text/plain; charset=us-ascii")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.Header().Set("Cache-Control", "no-store")
	io.WriteString(w, text) // a machine that hung up asks again
}

func (h *Handler) checkLease(remote string, mac cluster.MAC) error {
	from, err := netip.ParseAddrPort(remote)
	if err != nil {
		return fmt.Errorf("the caller's address %q is none", remote)
	}
	addr := from.Addr().Unmap()
	l, ok := h.State.Lease(addr)
	switch {
	case !ok || l.Declined || !h.State.Now().Before(l.Expires):
		return fmt.Errorf("%s is leased to no machine", addr)
	case l.MAC != mac:
		return fmt.Errorf("%s is leased to %s, not to %s", addr, l.MAC, mac)
	}
	return nil
}

// script is the text for a machine, by Decide.
func (h *Handler) script(ctx context.Context, mac cluster.MAC, arch Arch, since string) string {
	now := h.State.Now()
	waiting, began := waitingSince(since, now)
	node, known := h.State.NodeByMAC(mac)
	d := Decide(Input{
		Node: known, State: node.State, Collecting: h.State.Collecting(),
		Patient: waiting && (h.State.Collecting() || now.Sub(began) < Patience),
		Client:  Client{Arch: arch, Via: IPXE},
	})
	base := scriptURL(h.HTTP, mac)
	level := slog.LevelInfo
	if d.Action == Await || d.Action == Hold {
		level = slog.LevelDebug // every few seconds
	}
	h.log().Log(ctx, level, "boot script", "mac", mac, "node", node.Name, "arch", arch, "action", d.Action)
	switch d.Action {
	case Await:
		return await(mac, arch, node.Name, fmt.Sprintf("%s&since=%d", base, began.Unix()))
	case Hold:
		return hold(node, base)
	case Installer:
		return h.installer(ctx, node, mac, arch, base)
	}
	if !known {
		node.Name = mac.String()
	}
	return ownDisk(node.Name, arch)
}

// waitingSince reads when a machine began to wait, by its own word; nonsense
// is now.
func waitingSince(since string, now time.Time) (bool, time.Time) {
	if since == "" {
		return false, now
	}
	sec, err := strconv.ParseInt(since, 10, 64)
	began := time.Unix(sec, 0)
	if err != nil || began.After(now) {
		began = now
	}
	return true, began
}

// installer begins a boot of the node.
func (h *Handler) installer(ctx context.Context, n cluster.Node, mac cluster.MAC, arch Arch, url string) string {
	building, cancel := context.WithTimeout(ctx, buildPatience)
	defer cancel()
	boot, err := h.Installers.Installer(building, n.Install.Image, n.Install.Digest)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return retry(n.Name, "the installer is being made", url)
	case ctx.Err() != nil:
		return retry(n.Name, "the machine hung up", url) // nobody reads it
	case err != nil:
		return h.fail(ctx, n, "the head cannot make the installer: "+err.Error(), url)
	case arch != ArchUnknown && !arch.Runs(boot.Machine):
		return h.fail(ctx, n, fmt.Sprintf("%s is for %s; this machine's firmware (%s) cannot start it", n.Install.Image, boot.Machine, arch), url)
	}
	// 128 random bits or more, in letters and digits: fit for a command line.
	nonce := rand.Text()
	if err := h.State.Commit(ctx, cluster.BeginBoot{Node: n.Name, Boot: nonce}); err != nil {
		h.log().Error("boot cannot begin", "node", n.Name, "err", err)
		return retry(n.Name, "the head cannot begin this boot: "+err.Error(), url)
	}
	return launch{node: n, mac: mac, boot: boot, nonce: nonce, http: h.HTTP, tls: h.TLS, url: url}.installer()
}

// fail says of a node why it is not installed: whoever deployed it waits for a
// word, and does not stand before the machine. This boot has touched nothing.
func (h *Handler) fail(ctx context.Context, n cluster.Node, why, url string) string {
	h.log().Error("install cannot begin", "node", n.Name, "image", n.Install.Image, "why", why)
	if err := h.State.Commit(ctx, cluster.Fail{Node: n.Name, Install: n.Install.ID, Reason: why}); err != nil {
		h.log().Error("failure cannot be recorded", "node", n.Name, "err", err)
		return retry(n.Name, why, url)
	}
	n.State, n.Reason = cluster.Failed, why
	return hold(n, url)
}
