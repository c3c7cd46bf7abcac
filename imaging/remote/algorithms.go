package remote

import (
	"slices"

	"golang.org/x/crypto/ssh"
)

// ciphers in order of preference: AES-GCM costs half of ChaCha20's CPU time
// where the CPU has AES instructions, which is every x86-64 server.
var ciphers = [...]string{
	"aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com",
	"aes128-ctr", "aes192-ctr", "aes256-ctr",
}

// Heads live long: OpenSSH 5.3 of CentOS 6 has no host key algorithm but
// ssh-rsa and no key exchange above group14-sha1, and appliances have less. The
// client's order decides in SSH, and the exchange of keys covers the lists of
// both sides, so what stands last is used by those alone that know nothing
// else. Left out are RC4 and DSA keys: nothing has only those.
var (
	weakCiphers = [...]string{ssh.InsecureCipherAES128CBC, ssh.InsecureCipherTripleDESCBC}
	weakKeys    = [...]string{ssh.KeyAlgoRSA, ssh.CertAlgoRSAv01}
)

// algorithms are those to be offered besides those of host keys.
func algorithms() ssh.Config {
	good, weak := ssh.SupportedAlgorithms(), ssh.InsecureAlgorithms()
	return ssh.Config{
		KeyExchanges: append(good.KeyExchanges, weak.KeyExchanges...),
		Ciphers:      append(ciphers[:len(ciphers):len(ciphers)], weakCiphers[:]...),
		MACs:         append(good.MACs, weak.MACs...),
	}
}

// again offers RSA keys to a host that signs with SHA-1 itself, once more and
// to be signed with as it does: such hosts claim to take SHA-2 (OpenSSH 9.2
// tells what it knows, not what it was told to take), and then do not.
func again(signers []ssh.Signer) []ssh.Signer {
	all := slices.Clone(signers)
	for _, s := range signers {
		able, ok := s.(ssh.AlgorithmSigner)
		if !ok || s.PublicKey().Type() != ssh.KeyAlgoRSA {
			continue
		}
		if old, err := ssh.NewSignerWithAlgorithms(able, []string{ssh.KeyAlgoRSA}); err == nil {
			all = append(all, old)
		}
	}
	return all
}

// weaknesses names those of the algorithms agreed upon that are weak.
func weaknesses(used ssh.NegotiatedAlgorithms) []string {
	weak := ssh.InsecureAlgorithms()
	var names []string
	for _, x := range []struct {
		name string
		weak []string
	}{
		{used.KeyExchange, weak.KeyExchanges}, {used.HostKey, weak.HostKeys},
		{used.Read.Cipher, weak.Ciphers}, {used.Write.Cipher, weak.Ciphers},
		{used.Read.MAC, weak.MACs}, {used.Write.MAC, weak.MACs},
	} {
		if slices.Contains(x.weak, x.name) && !slices.Contains(names, x.name) {
			names = append(names, x.name)
		}
	}
	return names
}
