package remote

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"
)

// trust judges host keys by known_hosts files.
type trust struct {
	files   []string
	check   ssh.HostKeyCallback
	origins map[string]string // file that was parsed → file that it stands for
}

// maxKnownHosts bounds a known_hosts file; bufio.Scanner, which the library
// reads with, bounds a line.
const (
	maxKnownHosts = 64 << 20
	maxKnownLine  = bufio.MaxScanTokenSize - 2
)

// loadTrust reads the files; one that is not there knows nobody. Lines that
// make no sense, or hold a kind of key that the library does not know (ssh-dss),
// are passed over as ssh does; the library refuses the whole file for them.
func loadTrust(files []string) (*trust, error) {
	t := &trust{files: files, origins: map[string]string{}}
	var parsed []string
	defer func() {
		for _, p := range parsed {
			os.Remove(p)
		}
	}()
	for _, file := range files {
		text, err := readBounded(file, maxKnownHosts)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read known_hosts: %w", err)
		}
		clean, err := os.CreateTemp("", "doppel-known-*")
		if err != nil {
			return nil, fmt.Errorf("read known_hosts: %w", err)
		}
		parsed = append(parsed, clean.Name())
		t.origins[clean.Name()] = file
		_, err = clean.Write(cleanKnownHosts(text))
		if err := errors.Join(err, clean.Close()); err != nil {
			return nil, fmt.Errorf("read known_hosts: %w", err)
		}
	}
	check, err := knownhosts.New(parsed...)
	if err != nil {
		return nil, fmt.Errorf("read known_hosts: %w", err)
	}
	t.check = check
	return t, nil
}

func readBounded(file string, max int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(text)) > max {
		err = fmt.Errorf("%s is larger than %d bytes", file, max)
	}
	return text, err
}

// cleanKnownHosts empties the lines that the library would stumble over, and
// keeps the number of lines, so that its line numbers hold.
func cleanKnownHosts(text []byte) []byte {
	var clean bytes.Buffer
	for line := range bytes.Lines(text) {
		line = bytes.TrimRight(line, "\r\n")
		if knownLineReads(line) {
			clean.Write(line)
		}
		clean.WriteByte('\n')
	}
	return clean.Bytes()
}

func knownLineReads(line []byte) bool {
	line = bytes.TrimSpace(line)
	if len(line) == 0 || line[0] == '#' || len(line) > maxKnownLine {
		return false
	}
	words := strings.Fields(string(line))
	if words[0] == "@cert-authority" || words[0] == "@revoked" {
		words = words[1:]
	}
	if len(words) < 3 || strings.HasPrefix(words[0], "@") {
		return false
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(words[1] + " " + words[2]))
	if err != nil || key.Type() != words[1] {
		return false
	}
	return knownHostsReads(words[0])
}

// knownHostsReads tells whether the library can read a host field.
func knownHostsReads(hosts string) bool {
	if strings.HasPrefix(hosts, "|") {
		parts := strings.Split(hosts, "|")
		return len(parts) == 4 && parts[1] == "1" && isBase64(parts[2]) && isBase64(parts[3])
	}
	for p := range strings.SplitSeq(hosts, ",") {
		p, negated := strings.CutPrefix(p, "!")
		if negated && p == "" {
			return false
		}
		if strings.HasPrefix(p, "[") {
			if _, _, err := net.SplitHostPort(p); err != nil {
				return false
			}
		}
	}
	return true
}

func isBase64(s string) bool {
	_, err := base64.StdEncoding.DecodeString(s)
	return err == nil
}

// verdict asks known_hosts about a key, and puts the answer in our terms: nil,
// or a *HostKeyError.
func (t *trust) verdict(address string, remote net.Addr, key ssh.PublicKey) error {
	err := t.check(address, remote, key)
	if err == nil {
		return nil
	}
	e := &HostKeyError{
		Host: knownhosts.Normalize(address), Type: key.Type(), Fingerprint: ssh.FingerprintSHA256(key),
		File: t.writeTo(), Reason: HostKeyChanged,
	}
	var unknown *knownhosts.KeyError
	var revoked *knownhosts.RevokedError
	switch {
	case errors.As(err, &revoked):
		e.Reason, e.Known = HostKeyRevoked, []KnownKey{t.known(revoked.Revoked)}
	case errors.As(err, &unknown) && len(unknown.Want) == 0:
		e.Reason = HostKeyUnknown
	case errors.As(err, &unknown):
		for _, w := range unknown.Want {
			e.Known = append(e.Known, t.known(w))
		}
	default: // a certificate that does not hold: wrong principal, expired, revoked
		e.Reason, e.Err = HostKeyUnknown, err
	}
	return e
}

func (t *trust) writeTo() string {
	if len(t.files) == 0 {
		return ""
	}
	return t.files[0]
}

func (t *trust) known(k knownhosts.KnownKey) KnownKey {
	return KnownKey{File: t.origins[k.Filename], Line: k.Line, Type: k.Key.Type(), Fingerprint: ssh.FingerprintSHA256(k.Key)}
}

// nobodysKey is a key that no known_hosts holds: asking about it lists what is
// held.
type nobodysKey struct{}

func (nobodysKey) Type() string                        { return "none" }
func (nobodysKey) Marshal() []byte                     { return []byte("none") }
func (nobodysKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }

// algorithms orders host key algorithms so that the server shows a key that
// known_hosts can judge: a server has several, and one of another type than the
// known one would look like a change. A certificate authority for the host
// puts certificates first.
func (t *trust) algorithms(address string, remote net.Addr) []string {
	all := append(ssh.SupportedAlgorithms().HostKeys, weakKeys[:]...)
	var e *knownhosts.KeyError
	if !errors.As(t.check(address, remote, nobodysKey{}), &e) {
		return all
	}
	var first []string
	for _, w := range e.Want {
		if t.isAuthority(w) {
			for _, a := range all {
				if strings.Contains(a, "-cert-") {
					first = append(first, a)
				}
			}
			continue
		}
		first = append(first, algorithmsOf(w.Key.Type())...)
	}
	var order []string
	for _, a := range append(first, all...) {
		if !slices.Contains(order, a) && (slices.Contains(all, a) || slices.Contains(first, a)) {
			order = append(order, a)
		}
	}
	return order
}

// algorithmsOf lists the signature algorithms of a key type: RSA keys sign
// with SHA-2 nowadays (RFC 8332), and with SHA-1 on hosts older than that.
func algorithmsOf(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return []string{keyType}
}

// isAuthority tells whether a line of known_hosts is a @cert-authority line.
func (t *trust) isAuthority(k knownhosts.KnownKey) bool {
	text, err := readBounded(t.origins[k.Filename], maxKnownHosts)
	if err != nil {
		return false
	}
	number := 0
	for line := range bytes.Lines(text) {
		if number++; number == k.Line {
			return bytes.HasPrefix(bytes.TrimSpace(line), []byte("@cert-authority"))
		}
	}
	return false
}

// accept adds a key to the file that is written to. The file is made 0600,
// its directory 0700. Others may be adding to it at the same moment, so the
// line goes to its end in one write rather than through a copy of the file.
func (t *trust) accept(address string, key ssh.PublicKey, hashed bool) (err error) {
	file := t.writeTo()
	if file == "" {
		return nil // UserKnownHostsFile none: nothing is remembered
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("remember the host key in %s: %w", file, err)
		}
	}()
	dir := filepath.Dir(file)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	line := knownhosts.Line([]string{address}, key) + "\n"
	if hashed {
		_, rest, _ := strings.Cut(line, " ")
		line = knownhosts.HashHostname(knownhosts.Normalize(address)) + " " + rest
	}
	if size, err := f.Seek(0, io.SeekEnd); err != nil {
		return err
	} else if size > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, size-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			line = "\n" + line
		}
	}
	if _, err := f.WriteString(line); err != nil {
		return err
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // a device such as /dev/null
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// judge is the host key callback: what known_hosts says, and for a host it
// does not know what the options and the user say.
type judge struct {
	host   *host
	trust  *trust
	prompt func(question string, echo bool) (string, error)
	seen   string // fingerprint of the key that was accepted
}

func (j *judge) address() string {
	if j.host.keyAlias != "" {
		return net.JoinHostPort(j.host.keyAlias, "22")
	}
	return net.JoinHostPort(j.host.name, strconv.Itoa(j.host.port))
}

func (j *judge) callback(_ string, remote net.Addr, key ssh.PublicKey) error {
	address := j.address()
	err := j.trust.verdict(address, remote, key)
	if cert, ok := key.(*ssh.Certificate); ok && err != nil {
		// A certificate by an authority that known_hosts does not name counts
		// as the key in it.
		var refused *HostKeyError
		if errors.As(err, &refused) && refused.Reason == HostKeyUnknown {
			key, err = cert.Key, j.trust.verdict(address, remote, cert.Key)
		}
	}
	var e *HostKeyError
	if errors.As(err, &e) && e.Reason == HostKeyUnknown {
		err = j.meet(address, remote, key, e)
	}
	if err == nil {
		j.seen = ssh.FingerprintSHA256(key)
	}
	return err
}

// meet decides about a host that is not known.
func (j *judge) meet(address string, remote net.Addr, key ssh.PublicKey, e *HostKeyError) error {
	switch {
	case j.host.strict == "yes":
		e.Err = errors.New("StrictHostKeyChecking says to refuse such hosts")
		return e
	case j.host.strict == "ask":
		if j.prompt == nil {
			return e
		}
		if err := j.ask(remote, e); err != nil {
			e.Err = err
			return e
		}
	}
	if err := j.trust.accept(address, key, j.host.hashHosts); err != nil {
		return err
	}
	return nil
}

// ask shows the fingerprint, and takes yes, no, or the fingerprint itself.
func (j *judge) ask(remote net.Addr, e *HostKeyError) error {
	at := ""
	if remote != nil && !strings.HasPrefix(remote.String(), e.Host) {
		at = " (" + remote.String() + ")"
	}
	question := fmt.Sprintf("The host %s%s is not known yet. Its %s key has the fingerprint\n  %s\nConnect to it, and remember the key? (yes, no, or the fingerprint) ", e.Host, at, e.Type, e.Fingerprint)
	for range 3 {
		answer, err := j.prompt(question, true)
		if err != nil {
			return fmt.Errorf("ask about it: %w", err)
		}
		switch answer = strings.TrimSpace(answer); {
		case strings.EqualFold(answer, "yes"), answer == e.Fingerprint:
			return nil
		case strings.EqualFold(answer, "no"):
			return errors.New("it was not accepted")
		}
		question = "Please type yes, no, or the fingerprint: "
	}
	return errors.New("it was not accepted")
}

// again judges the key of a later key exchange on the same connection: it must
// be the one that was judged.
func (j *judge) again(key ssh.PublicKey) error {
	if cert, ok := key.(*ssh.Certificate); ok && ssh.FingerprintSHA256(cert.Key) == j.seen {
		return nil
	}
	if ssh.FingerprintSHA256(key) != j.seen {
		return fmt.Errorf("the host showed another key (%s) in the middle of the connection", ssh.FingerprintSHA256(key))
	}
	return nil
}
