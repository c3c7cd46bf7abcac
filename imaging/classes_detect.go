package imaging

import (
	"bytes"
	"encoding/binary"
)

// keyFiles are formats of private keys that begin with words.
var keyFiles = []string{
	"PuTTY-User-Key-File-",                     // PuTTY
	"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY --", // ssh.com
	"Private-key-format: v1.",                  // BIND: DNSSEC and SIG(0)
	"BORG_KEY ",                                // borg
	"# START OF TARSNAP KEY FILE",              //
	"LUKS\xba\xbe",                             // a header that was saved: the key's slots
	"(11:private-key",                          // GnuPG, canonical S-expressions
	"(21:protected-private-key",                //
	"Key: (private-key",                        // GnuPG, extended format
	"Key: (protected-private-key",              //
	"Created: 20",                              // likewise, if a key follows
}

// detectMore looks for private keys that are not in PEM.
func detectMore(b []byte) bool {
	text := bytes.TrimPrefix(b, []byte(byteOrderMark))
	for _, begin := range keyFiles {
		if !bytes.HasPrefix(text, []byte(begin)) {
			continue
		}
		if begin != "Created: 20" || bytes.Contains(text[:min(len(text), 4096)], []byte("private-key")) {
			return true
		}
	}
	return detectMinisign(text) || detectDER(b) || detectKeystore(b) || detectKeytab(b) || detectOpenPGP(b) ||
		detectField(text, "PrivateKey", '=', 43) || detectJWK(text)
}

// detectMinisign knows a secret key of minisign(1) or signify(1) by its comment.
func detectMinisign(b []byte) bool {
	line, rest, _ := bytes.Cut(b[:min(len(b), 1024)], []byte("\n"))
	return bytes.HasPrefix(line, []byte("untrusted comment: ")) && bytes.Contains(line, []byte("secret key")) && base64Run(rest) >= 32
}

// detectDER looks for a private key or a store of keys in DER: PKCS #1 (RFC
// 8017, A.1.2), SEC 1 (RFC 5915), PKCS #8, plain or encrypted (RFC 5958), and
// PKCS #12 (RFC 7292).
func detectDER(b []byte) bool {
	body, ok := derSequence(b)
	if !ok {
		return false
	}
	oid := func(after []byte, id ...byte) bool { // a sequence that begins with this object identifier
		inner, ok := derSequence(after)
		return ok && bytes.HasPrefix(inner, append([]byte{6, byte(len(id))}, id...))
	}
	rsaOID, pkcs5 := []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1}, []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 5}
	switch {
	case bytes.HasPrefix(body, []byte{2, 1, 0, 2}): // PKCS #1: version, modulus
		return len(body) > 64
	case bytes.HasPrefix(body, []byte{2, 1, 1, 4}): // SEC 1: version, the key
		return len(body) > 20 && body[4] >= 20 && body[4] <= 66
	case bytes.HasPrefix(body, []byte{2, 1, 0, 0x30}), bytes.HasPrefix(body, []byte{2, 1, 1, 0x30}): // PKCS #8: version, algorithm
		alg, ok := derSequence(body[3:])
		return ok && len(alg) > 4 && alg[0] == 6
	case bytes.HasPrefix(body, []byte{2, 1, 3, 0x30}): // PKCS #12: version, contents
		return oid(body[3:], append(rsaOID, 7, 1)...) || oid(body[3:], append(rsaOID, 7, 2)...)
	}
	inner, ok := derSequence(body) // PKCS #8, encrypted: by a scheme of PKCS #5
	return ok && len(inner) > 10 && inner[0] == 6 && bytes.HasPrefix(inner[2:], pkcs5)
}

// derSequence gives what is in the sequence that b begins with, as far as b
// goes.
func derSequence(b []byte) ([]byte, bool) {
	if len(b) < 4 || b[0] != 0x30 {
		return nil, false
	}
	n := int(b[1])
	switch {
	case n < 0x80:
		b = b[2:]
	case n == 0x81:
		n, b = int(b[2]), b[3:]
	case n == 0x82:
		n, b = int(binary.BigEndian.Uint16(b[2:])), b[4:]
	case n == 0x83 && len(b) > 5:
		n, b = int(b[2])<<16|int(binary.BigEndian.Uint16(b[3:])), b[5:]
	default:
		return nil, false
	}
	return b[:min(n, len(b))], n > 0
}

// detectKeystore looks for Java's stores, of which only some hold keys: JKS
// and JCEKS have magic, version and count, and a tag before each entry (1 a
// private key, 2 a certificate, 3 a secret key).
func detectKeystore(b []byte) bool {
	if len(b) < 16 || !bytes.HasPrefix(b, []byte{0xfe, 0xed, 0xfe, 0xed}) && !bytes.HasPrefix(b, []byte{0xce, 0xce, 0xce, 0xce}) {
		return false
	}
	version, tag := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[12:])
	return version <= 2 && (tag == 1 || tag == 3)
}

// detectKeytab looks for a keytab of Kerberos, version 2: entries with their
// length in front, each with the number of components and a realm.
func detectKeytab(b []byte) bool {
	if len(b) < 12 || b[0] != 5 || b[1] != 2 {
		return false
	}
	size, components, realm := binary.BigEndian.Uint32(b[2:]), binary.BigEndian.Uint16(b[6:]), int(binary.BigEndian.Uint16(b[8:]))
	return size > 16 && size < 1<<12 && components > 0 && components < 16 && realm > 0 && realm < 256 && b[10] >= ' ' && b[10] < 0x7f
}

// detectOpenPGP looks for a secret key packet (RFC 9580, section 5.5.3), in the
// old format of packets or the new, of version 4 or later.
func detectOpenPGP(b []byte) bool {
	if len(b) < 64 {
		return false
	}
	var body []byte
	switch {
	case b[0] == 0x94:
		body = b[2:]
	case b[0] == 0x95:
		body = b[3:]
	case b[0] == 0xc5 && b[1] < 192:
		body = b[2:]
	case b[0] == 0xc5 && b[1] < 224:
		body = b[3:]
	default:
		return false
	}
	version, algorithm := body[0], body[5]
	return version >= 4 && version <= 6 && (algorithm >= 1 && algorithm <= 3 || algorithm >= 16 && algorithm <= 22 || algorithm >= 25 && algorithm <= 28)
}

// detectField looks for a name at the beginning of a line, a sign, and a run of
// base64: WireGuard's PrivateKey = ….
func detectField(b []byte, name string, sign byte, run int) bool {
	for {
		i := bytes.Index(b, []byte(name))
		if i < 0 {
			return false
		}
		start := i == 0 || b[i-1] == '\n' || b[i-1] == ' ' || b[i-1] == '\t'
		b = b[i+len(name):]
		rest := bytes.TrimLeft(b, " \t")
		if !start || len(rest) == 0 || rest[0] != sign {
			continue
		}
		if base64Run(bytes.TrimLeft(rest[1:], " \t\"'")) >= run {
			return true
		}
	}
}

// detectJWK looks for a JSON Web Key that is private (RFC 7517 and 7518): one
// with the member d, or k where it is symmetric.
func detectJWK(b []byte) bool {
	if !bytes.Contains(b, []byte(`"kty"`)) {
		return false
	}
	for _, member := range []string{`"d"`, `"k"`} {
		for rest := b; ; {
			i := bytes.Index(rest, []byte(member))
			if i < 0 {
				break
			}
			rest = rest[i+len(member):]
			value, ok := bytes.CutPrefix(bytes.TrimLeft(rest, " \t\r\n"), []byte(":"))
			value, quoted := bytes.CutPrefix(bytes.TrimLeft(value, " \t\r\n"), []byte(`"`))
			if ok && quoted && base64URLRun(value) >= 20 {
				return true
			}
		}
	}
	return false
}

func base64URLRun(b []byte) int {
	for i, c := range b {
		if !(c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return i
		}
	}
	return len(b)
}
