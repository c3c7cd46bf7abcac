package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// bootParameters are the installer's words on the kernel's command line.
type bootParameters struct {
	server string           // base URL of the TLS service
	boot   string           // nonce of this boot
	mac    net.HardwareAddr // of the card it booted from; nil: not told
}

// parseCmdline reads /proc/cmdline.
func parseCmdline(s string) (bootParameters, error) {
	var p bootParameters
	for _, w := range strings.Fields(s) {
		key, value, _ := strings.Cut(w, "=")
		switch key {
		case "doppel.server":
			u, err := url.Parse(value)
			if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
				return p, fmt.Errorf("kernel command line: doppel.server=%q is not https://ADDRESS:PORT", value)
			}
			p.server = value
		case "doppel.boot":
			p.boot = value
		case "doppel.mac":
			mac, err := net.ParseMAC(value)
			if err != nil || len(mac) != 6 {
				return p, fmt.Errorf("kernel command line: doppel.mac=%q is not a MAC address", value)
			}
			p.mac = mac
		}
	}
	if p.server == "" || p.boot == "" {
		return p, errors.New("kernel command line: doppel.server= or doppel.boot= is missing")
	}
	return p, nil
}
