package clone

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"fmt"
	"path"
	"strings"

	"golang.org/x/crypto/ssh"
)

// hostKeys gives a compute node SSH host keys of its own, of the types that
// the image has. A head keeps the image's: who takes the head's address over
// must be the head to every known_hosts.
func (w *identity) hostKeys() error {
	if w.plan.Role == roleHead {
		return nil
	}
	types := w.hostKeyTypes()
	err := w.removeFiles("etc/ssh", func(name string) bool { return strings.HasPrefix(name, "ssh_host_") })
	if err != nil {
		return err
	}
	for _, t := range types {
		key, err := generateHostKey(t)
		if err != nil {
			return fmt.Errorf("generate an SSH host key of type %s: %w", t, err)
		}
		comment := "root@" + w.plan.Node
		block, err := ssh.MarshalPrivateKey(key, comment)
		if err != nil {
			return fmt.Errorf("write an SSH host key of type %s: %w", t, err)
		}
		public, err := ssh.NewPublicKey(key.Public())
		if err != nil {
			return fmt.Errorf("write an SSH host key of type %s: %w", t, err)
		}
		name := "etc/ssh/ssh_host_" + t + "_key"
		if err := w.write(name, pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
		line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))) + " " + comment + "\n"
		if err := w.write(name+".pub", []byte(line), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// hostKeyTypes are the types of the image's host keys; the usual ones for an
// image that has a server and no keys. DSA, which nobody takes any more, is
// left out.
func (w *identity) hostKeyTypes() []string {
	var types []string
	server := false
	for _, e := range w.image.List.All() {
		p := e.Path
		if p == "etc/ssh/sshd_config" {
			server = true
		}
		name, ok := strings.CutPrefix(p, "etc/ssh/ssh_host_")
		if !ok {
			continue
		}
		if t, ok := strings.CutSuffix(path.Base(name), "_key"); ok && (t == "rsa" || t == "ecdsa" || t == "ed25519") {
			types = append(types, t)
		}
	}
	if len(types) == 0 && server {
		types = []string{"rsa", "ecdsa", "ed25519"}
	}
	return types
}

func generateHostKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "rsa":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "ecdsa":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ed25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, fmt.Errorf("%q is not a type of key", kind)
}

// passwords locks the password hashes of a compute node: what every node holds
// is what whoever breaks into the weakest one reads. Accounts, their groups
// and their keys stay, so that logins by SSH key and su from root work.
func (w *identity) passwords() error {
	if w.plan.Role == roleHead {
		return nil
	}
	for _, name := range []string{"etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-"} {
		old, err := w.read(name)
		if err != nil {
			return err
		}
		if old == nil {
			continue
		}
		if err := w.write(name, lockPasswords(old), 0o640); err != nil {
			return err
		}
	}
	return nil
}

// lockPasswords puts * where shadow(5) and gshadow(5) have a hash. Not !, which
// sshd without PAM takes for a locked account and refuses keys for, too.
func lockPasswords(b []byte) []byte {
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, ":")
		hash, tail, more := strings.Cut(rest, ":")
		if !ok || !more || strings.TrimLeft(hash, "!") == "" || hash == "*" || strings.TrimLeft(hash, "!") == "*" {
			out.WriteString(line)
			continue
		}
		out.WriteString(name + ":*:" + tail)
	}
	return []byte(out.String())
}
