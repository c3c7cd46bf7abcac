package remote

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/crypto/ssh"
)

// maxKeyFile bounds a file with a key.
const maxKeyFile = 1 << 20

// identity is a key that may open the door: from a file, from the user's
// ssh-agent, or a file whose private half the agent has.
type identity struct {
	name   string        // for people
	public ssh.PublicKey // of the plain key
	signer ssh.Signer    // nil: only the public half is here
	cert   *ssh.Certificate
}

func (i *identity) String() string {
	return fmt.Sprintf("%s (%s)", i.name, ssh.FingerprintSHA256(i.public))
}

// signers gives the signer with its certificate first, as ssh offers them.
func (i *identity) signers() []ssh.Signer {
	if i.signer == nil {
		return nil
	}
	if i.cert != nil {
		if s, err := ssh.NewCertSigner(i.cert, i.signer); err == nil {
			return []ssh.Signer{s, i.signer}
		}
	}
	return []ssh.Signer{i.signer}
}

// loadIdentity reads a key file. An encrypted one is not decrypted before the
// server has said that it would take the key: the passphrase is asked for when
// it is of use.
func loadIdentity(file string, prompt func(string, bool) (string, error)) (*identity, error) {
	text, err := readBounded(file, maxKeyFile)
	if err != nil {
		return nil, err
	}
	id := &identity{name: "key " + file}
	var locked *ssh.PassphraseMissingError
	id.signer, err = ssh.ParsePrivateKey(text)
	switch {
	case err == nil:
		id.public = id.signer.PublicKey()
	case errors.As(err, &locked):
		if id.public = locked.PublicKey; id.public == nil {
			// The old PEM formats keep the public half inside.
			if id.public, err = readPublic(file + ".pub"); err != nil {
				return nil, fmt.Errorf("%s is encrypted in a format that hides its public half, and %s.pub does not show it: %w", file, file, err)
			}
		}
		id.signer = &lockedSigner{file: file, text: text, public: id.public, prompt: prompt}
	default:
		// A public key alone picks one of the ssh-agent's.
		public, pubErr := readPublic(file)
		if pubErr != nil {
			return nil, fmt.Errorf("%s holds no key that doppel can use: %w", file, err)
		}
		id.public = public
	}
	if cert, err := readPublic(file + "-cert.pub"); err == nil {
		if c, ok := cert.(*ssh.Certificate); ok && bytes.Equal(c.Key.Marshal(), id.public.Marshal()) {
			id.cert = c
		}
	}
	return id, nil
}

func readPublic(file string) (ssh.PublicKey, error) {
	text, err := readBounded(file, maxKeyFile)
	if err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(text)
	return key, err
}

// errPassphrase is why an encrypted key could not be used.
var errPassphrase = errors.New("wrong passphrase")

// lockedSigner is an encrypted key; its first signature asks for the
// passphrase.
type lockedSigner struct {
	file   string
	text   []byte
	public ssh.PublicKey
	prompt func(string, bool) (string, error)
	open   ssh.AlgorithmSigner
}

func (s *lockedSigner) PublicKey() ssh.PublicKey { return s.public }

func (s *lockedSigner) Sign(rand io.Reader, data []byte) (*ssh.Signature, error) {
	return s.SignWithAlgorithm(rand, data, "")
}

func (s *lockedSigner) SignWithAlgorithm(rand io.Reader, data []byte, algorithm string) (*ssh.Signature, error) {
	if s.open == nil {
		if err := s.unlock(); err != nil {
			return nil, err
		}
	}
	return s.open.SignWithAlgorithm(rand, data, algorithm)
}

func (s *lockedSigner) unlock() error {
	if s.prompt == nil {
		return fmt.Errorf("%s is encrypted, and nobody is there to be asked for its passphrase: load it into ssh-agent", s.file)
	}
	question := fmt.Sprintf("Passphrase for %s: ", s.file)
	for range 3 {
		passphrase, err := s.prompt(question, false)
		if err != nil {
			return fmt.Errorf("ask for the passphrase of %s: %w", s.file, err)
		}
		signer, err := ssh.ParsePrivateKeyWithPassphrase(s.text, []byte(passphrase))
		if err != nil {
			question = fmt.Sprintf("That did not open it. Passphrase for %s: ", s.file)
			continue
		}
		open, ok := signer.(ssh.AlgorithmSigner)
		if !ok {
			return fmt.Errorf("%s holds a key of kind %s that doppel cannot sign with", s.file, signer.PublicKey().Type())
		}
		if !bytes.Equal(signer.PublicKey().Marshal(), s.public.Marshal()) {
			return fmt.Errorf("the public key beside %s is not its own", s.file)
		}
		s.open = open
		return nil
	}
	return fmt.Errorf("%s: %w", s.file, errPassphrase)
}

// keyRing orders all identities for one host: those named with -i; then those
// that ssh_config or the defaults name and the ssh-agent holds; then the
// agent's other keys, unless IdentitiesOnly; then the remaining files. What a
// file names and the agent holds is signed by the agent, without a passphrase.
func (l *login) keyRing(agentKeys []ssh.Signer) ([]*identity, error) {
	held := map[string]ssh.Signer{}
	for _, s := range agentKeys {
		held[string(s.PublicKey().Marshal())] = s
	}
	var first, inAgent, rest []*identity
	named := map[string]bool{}
	for n, file := range l.host.identities {
		id, err := loadIdentity(file, l.prompt)
		if err != nil {
			if n < l.host.explicit {
				return nil, fmt.Errorf("read key %s: %w", file, err)
			}
			if !errors.Is(err, fs.ErrNotExist) {
				l.log.Warn("passing over a key file", "file", file, "error", err)
			}
			continue
		}
		blob := string(id.public.Marshal())
		if named[blob] {
			continue
		}
		named[blob] = true
		s, ok := held[blob]
		if ok {
			id.signer = s
		}
		switch {
		case id.signer == nil && n < l.host.explicit:
			return nil, fmt.Errorf("%s is a public key, and the ssh-agent does not hold its private half", file)
		case id.signer == nil:
		case n < l.host.explicit:
			first = append(first, id)
		case ok:
			inAgent = append(inAgent, id)
		default:
			rest = append(rest, id)
		}
	}
	ring := append(first, inAgent...)
	if !l.host.only {
		for _, s := range agentKeys {
			if !named[string(s.PublicKey().Marshal())] {
				ring = append(ring, &identity{name: "ssh-agent's key", public: s.PublicKey(), signer: s})
			}
		}
	}
	return append(ring, rest...), nil
}
