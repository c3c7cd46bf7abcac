package pxe

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"doppel/cluster"
)

// How often a machine that waits asks again.
const askEvery = 5 * time.Second

// script is the text of an iPXE script. A line of a script is split at blanks;
// ${…} is expanded, || and && join commands, and there are no quotes, so only
// text that went through clean may be shown.
type script struct{ b strings.Builder }

func newScript() *script {
	s := &script{}
	s.b.WriteString("#!ipxe\n")
	return s
}

func (s *script) line(format string, args ...any) {
	fmt.Fprintf(&s.b, format+"\n", args...)
}

// say shows text to whoever stands before the machine.
func (s *script) say(format string, args ...any) {
	for _, l := range wrap(clean(fmt.Sprintf(format, args...)), 70, 6) {
		// The word before the text keeps a leading - from being an option.
		s.line("echo doppel: %s", l)
	}
}

// again asks for the script once more, forever. Where the server does not
// answer, or answers that the lease is over (iPXE renews none), the machine
// asks for an address anew first. The script that is fetched takes the place of
// this one, so that memory does not fill up over a long night.
func (s *script) again(url string, after time.Duration) string {
	s.line(":again")
	s.line("sleep %d", int(after/time.Second))
	s.line("chain --replace --autofree %s ||", url)
	s.line("dhcp ||")
	s.line("goto again")
	return s.b.String()
}

// ownDisk sends a machine to what is installed on it. A BIOS starts its first
// disk by its drive number; where that cannot be started, exit gives the word
// back to the BIOS, which goes on with the next device. UEFI goes on to the
// next entry of its boot order when a loader ends with an error; one that ends
// well has it show its menu and stop there (UEFI 2.10, section 3.1.1).
func ownDisk(who string, a Arch) string {
	s := newScript()
	s.say("%s boots its own disk", who)
	if a == ArchBIOS {
		s.line("sanboot --no-describe --drive 0x80 || exit")
	} else {
		s.line("exit 1")
	}
	return s.b.String()
}

// await keeps a machine that nobody has a use for yet. node is the node that
// it belongs to, if it does.
func await(mac cluster.MAC, a Arch, node, url string) string {
	s := newScript()
	s.line("echo")
	if node == "" {
		s.say("this machine waits to be assigned: %s (%s)", mac, a)
		s.say("on the head: doppel assign %s NODE", mac)
	} else {
		s.say("this machine is %s: %s (%s)", node, mac, a)
		s.say("on the head: doppel deploy %s", node)
	}
	return s.again(url, askEvery)
}

// hold keeps a machine whose install failed, and shows why.
func hold(n cluster.Node, url string) string {
	s := newScript()
	s.line("echo")
	image := n.Image
	if n.Install != nil {
		image = n.Install.Image
	}
	s.say("%s: installing %s failed", n.Name, image)
	s.say("%s", n.Reason)
	s.say("waits to be deployed again; on the head: doppel deploy %s", n.Name)
	return s.again(url, askEvery)
}

// retry says what is wrong on the server's side and asks again.
func retry(node, why, url string) string {
	s := newScript()
	s.line("echo")
	s.say("%s: %s", node, why)
	return s.again(url, 2*askEvery)
}

// launch is what the installer's script is made of.
type launch struct {
	node  cluster.Node
	mac   cluster.MAC
	boot  Boot
	nonce string
	http  netip.AddrPort
	tls   netip.AddrPort
	url   string // of the script
}

// installer hands a machine its kernel. initrd=initrd is how a kernel started
// by UEFI's stub finds the file in the loader's file system; a BIOS ignores it.
// The screen is the last console and so /dev/console, which is there on every
// machine; the agent writes to the serial line as well.
func (l launch) installer() string {
	s := newScript()
	s.line("echo")
	s.say("%s is installed with %s", l.node.Name, l.node.Install.Image)
	if l.node.State == cluster.Installing && l.node.Install.Stage != "" {
		s.say("goes on with an install that got to: %s", l.node.Install.Stage)
	}
	s.line("kernel --name vmlinuz http://%s/boot/%s/vmlinuz initrd=initrd %s || goto again", l.http, l.boot.KernelDigest.Hex(), l.cmdline())
	s.line("initrd --name initrd http://%s/boot/%s/initrd || goto lost", l.http, l.boot.InitrdDigest.Hex())
	s.line("boot ||")
	s.line("imgfree initrd ||")
	s.line(":lost")
	s.line("imgfree vmlinuz ||")
	return s.again(l.url, 2*askEvery)
}

// cmdline is the installer's. A kernel that panics starts again, and so comes
// back to where doppel decides.
func (l launch) cmdline() string {
	return fmt.Sprintf("doppel.server=https://%s doppel.boot=%s doppel.mac=%s console=ttyS0,115200 console=tty0 loglevel=4 panic=30",
		l.tls, l.nonce, l.mac)
}

// clean leaves of a text what iPXE shows as it is: printable ASCII without the
// characters that its command line gives a meaning to.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n', r == '\t', r == '\r':
			return ' '
		case r == '"', r == '`':
			return '\''
		case r < ' ', r > '~':
			return '?'
		case strings.ContainsRune("$#|&\\{}<>", r):
			return '.'
		}
		return r
	}, text)
}

// wrap breaks text into lines of at most width bytes and keeps the first most.
func wrap(text string, width, most int) []string {
	var lines []string
	var line string
	for _, w := range strings.Fields(text) {
		for len(w) > width { // a path without a blank
			if line != "" {
				lines, line = append(lines, line), ""
			}
			lines, w = append(lines, w[:width]), w[width:]
		}
		switch {
		case line == "":
			line = w
		case len(line)+1+len(w) <= width:
			line += " " + w
		default:
			lines, line = append(lines, line), w
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	if len(lines) > most {
		lines = append(lines[:most-1], lines[most-1]+" ...")
	}
	return lines
}
