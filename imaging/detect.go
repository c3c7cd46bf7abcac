package imaging

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"io"
	"strings"
)

const (
	// lookBack is how much of what was looked through already is looked through
	// again with what follows, so that no border between two reads hides a key.
	// It is more than detectText needs to decide.
	lookBack = 1 << 10
	// beginning is where a file has what says what it is.
	beginning = 64 << 10
)

// DetectedSecret is what a note says of a secret that no rule knows.
const DetectedSecret = "it looks like a private key, or like memory, and no rule knows it"

// looks is how far a Chunker's input has been looked through for secrets.
type looks struct {
	at      int  // of the Chunker's buffer, everything before
	begun   bool // at the beginning of the file
	program bool
	found   bool
}

// Secret tells whether what the Chunker has read so far holds a secret: a
// private key or what is as good as one, or memory. Asked before the first chunk
// and behind each, it has looked through the whole of a chunk, and on to where a
// key that begins in it shows itself, before anybody is given that chunk.
//
// It looks for text anywhere in the file: PEM of any kind (PKCS#1, PKCS#8, EC,
// DSA, OpenSSH, PGP, OpenVPN, SSH2), also inside YAML, JSON or a shell script,
// and an age identity; and at its beginning, for PEM in base64 and for the formats
// that have a beginning of their own: see detectBeginning. Programs and
// libraries hold keys to test themselves with (libgnutls), and are not looked
// through.
func (c *Chunker) Secret() bool {
	l := &c.looks
	if !l.begun {
		l.begun = true
		c.ahead()
		head := c.buf[c.start:c.end]
		l.program = isProgram(head)
		l.found = !l.program && detectBeginning(head, c.err == io.EOF)
	}
	if !l.found && !l.program && l.at < c.end {
		l.found = detectText(c.buf[max(0, l.at-lookBack):c.end])
	}
	l.at = c.end
	return l.found
}

// DetectSecret tells whether b, a whole file, holds what Chunker.Secret looks
// for.
func DetectSecret(b []byte) bool {
	return !isProgram(b) && (detectBeginning(b, true) || detectText(b))
}

// isProgram tells whether a file is a program, a library or an archive of their
// parts. A core dump is none (elf(5): type 4).
func isProgram(b []byte) bool {
	return bytes.HasPrefix(b, []byte("\x7fELF")) && !isCore(b) || bytes.HasPrefix(b, []byte("!<arch>\n"))
}

func isCore(b []byte) bool {
	if !bytes.HasPrefix(b, []byte("\x7fELF")) || len(b) < 18 {
		return false
	}
	order := binary.ByteOrder(binary.LittleEndian)
	if b[5] == 2 {
		order = binary.BigEndian
	}
	return order.Uint16(b[16:]) == 4
}

// detectText looks for keys that are text, anywhere in b. All that it knows have
// the letters KEY, which are rare.
func detectText(b []byte) bool {
	for at := 0; ; {
		i := bytes.Index(b[at:], []byte("KEY"))
		if i < 0 {
			break
		}
		at += i
		before, after := b[:at], b[at+len("KEY"):]
		switch {
		case bytes.HasSuffix(before, []byte("PRIVATE ")):
			if detectPEM(before, after) {
				return true
			}
		case bytes.HasSuffix(before, []byte("AGE-SECRET-")):
			if detectAge(after) {
				return true
			}
		}
		at += len("KEY")
	}
	return false
}

// detectPEM tells whether PRIVATE KEY, between before and after, is of the first
// line of a key: -----BEGIN … PRIVATE KEY----- of RFC 7468, the same with BLOCK
// of OpenPGP, or ---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ---- of SSH Communications;
// and a key follows it.
func detectPEM(before, after []byte) bool {
	line := before[max(0, len(before)-64):]
	if i := bytes.LastIndexByte(line, '\n'); i >= 0 {
		line = line[i+1:]
	}
	for _, kind := range []struct{ begin, end string }{{"-----BEGIN ", " BLOCK-----"}, {"-----BEGIN ", "-----"}, {"---- BEGIN ", " ----"}} {
		if rest, ok := bytes.CutPrefix(after, []byte(kind.end)); ok && bytes.Contains(line, []byte(kind.begin)) && looksLikeKey(rest) {
			return true
		}
	}
	return false
}

// looksLikeKey tells whether b, which follows the first line of a private key,
// begins with a line end and then with a header of RFC 1421 or OpenPGP or a run
// of base64. A key that has lost its line ends (in a variable of a shell) has a
// longer run.
func looksLikeKey(b []byte) bool {
	line := false
	for b = b[:min(len(b), lookBack/2)]; len(b) > 0; {
		switch {
		case b[0] == '\r' || b[0] == '\n':
			line = true
			b = b[1:]
		case len(b) > 1 && b[0] == '\\' && (b[1] == 'n' || b[1] == 'r'):
			line = true
			b = b[2:]
		case strings.IndexByte(" \t\"'+", b[0]) >= 0:
			b = b[1:]
		default:
			for _, header := range []string{"Proc-Type:", "DEK-Info:", "Version:", "Comment:", "Subject:", "Hash:", "Charset:"} {
				if line && bytes.HasPrefix(b, []byte(header)) {
					return true
				}
			}
			return line && base64Run(b) >= 32 || base64Run(b) >= 48
		}
	}
	return false
}

func base64Run(b []byte) int {
	for i, c := range b {
		if !(c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("+/=-_", c) >= 0) {
			return i
		}
	}
	return len(b)
}

// detectAge tells whether b goes on, behind AGE-SECRET-KEY, as an age identity
// does: -1 or -PQ-1 and at least 50 characters of upper-case Bech32.
func detectAge(b []byte) bool {
	const bech32 = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"
	b = bytes.TrimPrefix(b, []byte("-PQ"))
	rest, ok := bytes.CutPrefix(b, []byte("-1"))
	if !ok {
		return false
	}
	n := 0
	for n < min(len(rest), 50) && strings.IndexByte(bech32, rest[n]) >= 0 {
		n++
	}
	return n == 50
}

// magics are what files that hold private keys, or memory, begin with.
var magics = []string{
	"PuTTY-User-Key-File-",
	"SSH PRIVATE KEY FILE FORMAT 1.",               // ssh-keygen -t rsa1
	"Private-key-format: v1.",                      // dnssec-keygen
	"untrusted comment: minisign encrypted secret", // and with a password
	"untrusted comment: minisign secret",
	"untrusted comment: signify secret",
	"== ed25519v1-secret:",           // Tor
	"age-encryption.org/v1",          // identities under a passphrase are so
	"-----BEGIN AGE ENCRYPTED FILE-", // likewise
	"-----BEGIN OpenVPN Static key",
	"-----BEGIN OpenVPN tls-crypt",
	"\x03\xd9\xa2\x9a",                 // KeePass
	"\x05\x04\x00\x0c\x00\x01\x00\x08", // Kerberos credential cache (krb5's ccache_file_format)
	"KDUMP   ",                         // makedumpfile
	"DISKDUMP",
}

// detectBeginning tells whether a file that begins with b, and whole says that
// b is all of it, is of a kind that holds private keys, or memory.
func detectBeginning(b []byte, whole bool) bool {
	b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf")) // UTF-8's byte order mark
	for _, m := range magics {
		if bytes.HasPrefix(b, []byte(m)) {
			return true
		}
	}
	if isCore(b) || isSwap(b) || isKeytab(b, whole) || isOpenPGP(b) || isDERKey(b, whole) || isKeyStore(b) {
		return true
	}
	b = b[:min(len(b), beginning)]
	return detectInner(b) || detectConfig(b)
}

// isSwap tells whether mkswap(8) or a hibernating kernel has signed the end of
// the first page.
func isSwap(b []byte) bool {
	for _, page := range []int{4 << 10, 8 << 10, 16 << 10, 64 << 10} {
		if len(b) < page {
			break
		}
		if s := string(b[page-10 : page]); s == "SWAPSPACE2" || s == "S1SUSPEND\x00" {
			return true
		}
	}
	return false
}

// isKeytab knows version 2 of Kerberos keytabs: entries of a length, with the
// number of parts of a principal and its realm in front.
func isKeytab(b []byte, whole bool) bool {
	if len(b) < 10 || b[0] != 5 || b[1] != 2 {
		return false
	}
	size, parts, realm := int64(int32(binary.BigEndian.Uint32(b[2:]))), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint16(b[8:])
	if size < 0 {
		size = -size // a hole where an entry was
		return size < 64<<10
	}
	return parts > 0 && parts <= 16 && realm < 1024 && size < 64<<10 && (!whole || 6+size <= int64(len(b)))
}

// isOpenPGP knows a secret key as gpg --export-secret-keys writes it: a packet
// with tag 5 of version 3 to 6, a time and a public key algorithm (RFC 9580), and
// the keys of GnuPG's private-keys-v1.d.
func isOpenPGP(b []byte) bool {
	if len(b) < 16 {
		return false
	}
	for _, s := range []string{"(11:private-key", "(21:protected-private-key", "(20:shadowed-private-key", "Key: (private-key", "Key: (protected-private-key"} {
		if bytes.Contains(b[:min(len(b), 1024)], []byte(s)) {
			return true
		}
	}
	var body []byte
	switch b[0] {
	case 0x94: // old format, tag 5, one byte of length
		body = b[2:]
	case 0x95: // two bytes
		body = b[3:]
	case 0xc5: // new format
		switch {
		case b[1] < 192:
			body = b[2:]
		case b[1] < 224:
			body = b[3:]
		case b[1] == 255:
			body = b[6:]
		default:
			return false
		}
	default:
		return false
	}
	version, algorithm := body[0], body[5]
	if version == 3 {
		algorithm = body[7]
	}
	year := binary.BigEndian.Uint32(body[1:5]) // seconds since 1970
	return version >= 3 && version <= 6 && year > 600_000_000 && (algorithm >= 1 && algorithm <= 3 || algorithm >= 16 && algorithm <= 28)
}

// isKeyStore tells whether a Java keystore (JKS, JCEKS) has an entry that is a
// key: most of them hold certificates alone (/etc/ssl/certs/java/cacerts).
func isKeyStore(b []byte) bool {
	if len(b) < 16 {
		return false
	}
	if m := binary.BigEndian.Uint32(b); m != 0xfeedfeed && m != 0xcececece {
		return false
	}
	version, left := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	at := 12
	text := func() bool { // with two bytes of length
		if at+2 > len(b) {
			return false
		}
		at += 2 + int(binary.BigEndian.Uint16(b[at:]))
		return true
	}
	for ; left > 0 && at+4 <= len(b); left-- {
		tag := binary.BigEndian.Uint32(b[at:])
		if tag != 2 {
			return tag == 1 || tag == 3 // a private key, a sealed one
		}
		at += 4
		if !text() { // alias
			return false
		}
		at += 8 // date
		if version == 2 && !text() {
			return false
		}
		if at+4 > len(b) {
			return false
		}
		at += 4 + int(binary.BigEndian.Uint32(b[at:]))
	}
	return false
}

// isDERKey knows private keys in DER: PKCS#1 and DSA, SEC 1, PKCS#8 in the clear
// and under a password, and PKCS#12 with a key in it.
func isDERKey(b []byte, whole bool) bool {
	outer, rest, ok := derElement(b, 0x30)
	if !ok {
		return false
	}
	// A key is the whole of its file; a line end may have slipped in behind it.
	if !whole || len(bytes.TrimRight(rest, "\r\n")) > 0 {
		return len(outer) > 4 && bytes.HasPrefix(outer, []byte{2, 1, 3}) && hasKeyBag(b)
	}
	number, rest, ok := derElement(outer, 2)
	if !ok {
		// EncryptedPrivateKeyInfo: how it is encrypted, by PKCS#5 or #12, and it.
		how, rest, ok := derElement(outer, 0x30)
		oid, _, isOID := derElement(how, 6)
		sealed, rest, isString := derElement(rest, 4)
		pbe := bytes.HasPrefix(oid, []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x05")) || bytes.HasPrefix(oid, []byte("\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01"))
		return ok && isOID && pbe && isString && len(sealed) >= 32 && len(rest) == 0
	}
	if len(number) != 1 {
		return false
	}
	switch number[0] {
	case 0, 1:
		if algorithm, rest, ok := derElement(rest, 0x30); ok { // PKCS#8
			_, _, isOID := derElement(algorithm, 6)
			_, _, isString := derElement(rest, 4)
			return isOID && isString
		}
		if key, _, ok := derElement(rest, 4); ok { // SEC 1
			return number[0] == 1 && len(key) >= 16 && len(key) <= 72
		}
		n := 0 // PKCS#1 has eight more numbers, DSA five
		for len(rest) > 0 {
			if _, rest, ok = derElement(rest, 2); !ok {
				return n >= 8 // PKCS#1 with more than two primes goes on otherwise
			}
			n++
		}
		return n >= 5
	case 3:
		return hasKeyBag(b)
	}
	return false
}

// derElement takes the element with the tag that b begins with apart: what is in
// it, and what follows it.
func derElement(b []byte, tag byte) (in, rest []byte, ok bool) {
	if len(b) < 2 || b[0] != tag {
		return nil, nil, false
	}
	n, at := int(b[1]), 2
	if n == 0x80 { // BER: of indefinite length
		return b[2:], nil, true
	}
	if n > 0x80 {
		octets := n & 0x7f
		if octets > 4 || len(b) < 2+octets {
			return nil, nil, false
		}
		n = 0
		for _, c := range b[2 : 2+octets] {
			n = n<<8 | int(c)
		}
		at += octets
	}
	if n > len(b)-at {
		return nil, nil, false
	}
	return b[at : at+n], b[at+n:], true
}

// hasKeyBag looks for the bags of PKCS#12 that hold keys (RFC 7292, section 4.2).
// Bags of certificates are mostly encrypted as a whole, those of keys each by
// itself.
func hasKeyBag(b []byte) bool {
	bag := []byte("\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01")
	for {
		i := bytes.Index(b, bag)
		if i < 0 || i+len(bag) == len(b) {
			return false
		}
		if kind := b[i+len(bag)]; kind == 1 || kind == 2 {
			return true
		}
		b = b[i+len(bag):]
	}
}

// detectInner looks for PEM in base64, as Kubernetes and cloud-init write it.
func detectInner(b []byte) bool {
	for {
		i := bytes.Index(b, []byte("LS0tLS1CRUdJTi")) // -----BEGIN
		if i < 0 {
			return false
		}
		b = b[i:]
		var plain [192]byte
		n, _ := base64.StdEncoding.Decode(plain[:], b[:min(len(b), 248)&^3]) // what is good in front of what is not
		if detectText(plain[:n]) {
			return true
		}
		b = b[1:]
	}
}

// detectConfig looks for keys that are a value among others: of WireGuard, in its
// own files and those of systemd-networkd and NetworkManager; JSON Web Keys; TSIG
// keys. Which of them it can be shows in the first line that is no comment.
func detectConfig(b []byte) bool {
	first := b
	for {
		first = bytes.TrimLeft(first, " \t\r\n")
		if len(first) == 0 || first[0] != '#' && first[0] != ';' && !bytes.HasPrefix(first, []byte("//")) {
			break
		}
		i := bytes.IndexByte(first, '\n')
		if i < 0 {
			return false
		}
		first = first[i:]
	}
	switch {
	case len(first) == 0:
		return false
	case first[0] == '{' || first[0] == '[' && bytes.Contains(first, []byte(`"kty"`)):
		return isJWK(first)
	case first[0] == '[':
		for _, name := range []string{"PrivateKey", "private-key", "PresharedKey", "preshared-key"} {
			if hasValue(first, name, "=", 44) {
				return true
			}
		}
	case bytes.HasPrefix(first, []byte("key ")):
		return bytes.Contains(first, []byte("algorithm")) && hasValue(first, "secret", "", 16)
	}
	return false
}

// isJWK tells whether JSON has a key (RFC 7517) with its private part: d, or k of
// one that is shared.
func isJWK(b []byte) bool {
	return bytes.Contains(b, []byte(`"kty"`)) && (hasValue(b, `"d"`, ":", 20) || hasValue(b, `"k"`, ":", 16))
}

// hasValue tells whether name is followed by sep and a run of base64 that is at
// least so long, in quotes or not.
func hasValue(b []byte, name, sep string, length int) bool {
	for {
		i := bytes.Index(b, []byte(name))
		if i < 0 {
			return false
		}
		b = b[i+len(name):]
		value, ok := bytes.CutPrefix(bytes.TrimLeft(b[:min(len(b), 256)], " \t\n"), []byte(sep))
		if ok && base64Run(bytes.TrimLeft(value, " \t\n\"")) >= length {
			return true
		}
	}
}
