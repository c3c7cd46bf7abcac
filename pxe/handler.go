package pxe

import (
	"log/slog"
	"net/http"
	"net/netip"
	"time"
)

// Handler serves everything below /boot/.
type Handler struct {
	State      State
	Installers Installers
	Loaders    Loaders
	Dir        string         // cacheDir of BuildBoot
	HTTP       netip.AddrPort // of this service, as machines reach it
	TLS        netip.AddrPort // of the TLS service, as machines reach it
	Log        *slog.Logger
	Now        func() time.Time // nil: time.Now
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }
