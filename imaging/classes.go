package imaging

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
)

// rule puts the files that pattern stands for into a class.
type rule struct {
	class   Class
	pattern string
}

// secretRules is the whole of what doppel knows about secrets by name. The
// first rule that fits decides. A pattern counts from the root.
//
// A file that no rule knows is looked into: DetectSecret.
var secretRules = [...]rule{
	// What a key pair shows to everyone, beside private halves below.
	{ClassNone, "etc/ssh/ssh_host_*_key.pub"},
	{ClassNone, "etc/ssh/ssh_host_*_key-cert.pub"},
	{ClassNone, "root/.ssh/*.pub"},
	{ClassNone, "home/*/.ssh/*.pub"},
	{ClassNone, "root/.ssh/authorized_keys*"},
	{ClassNone, "home/*/.ssh/authorized_keys*"},
	{ClassNone, "root/.ssh/known_hosts*"},
	{ClassNone, "home/*/.ssh/known_hosts*"},
	{ClassNone, "etc/letsencrypt/**/README"},
	{ClassNone, "etc/pki/tls/private/README*"},
	// Packages bring keys to test with and to explain; everyone has them.
	{ClassNone, "usr/share/doc/**"},
	{ClassNone, "usr/lib/python*/test/**"},
	{ClassNone, "usr/lib64/python*/test/**"},
	{ClassNone, "usr/lib/python*/**/tests/**"},
	{ClassNone, "usr/share/perl*/**/t/**"},
	{ClassNone, "usr/src/linux-*/**"},
	{ClassNone, "usr/share/cmake-*/Templates/**"},
	// Java's stores of certificates look like its stores of keys.
	{ClassNone, "etc/ssl/certs/java/cacerts"},
	{ClassNone, "etc/pki/java/cacerts"},
	{ClassNone, "etc/pki/ca-trust/extracted/java/cacerts"},
	{ClassNone, "usr/lib/jvm/**/cacerts"},

	// One machine's own: made anew on a compute node, kept by heads.
	{ClassNode, "etc/ssh/ssh_host_*_key"},
	{ClassNode, "etc/machine-id"},
	{ClassNode, "var/lib/dbus/machine-id"},
	{ClassNode, "var/lib/systemd/random-seed"},
	{ClassNode, "var/lib/urandom/random-seed"},
	{ClassNode, "var/lib/random-seed"},
	{ClassNode, "boot/efi/loader/random-seed"}, // systemd-boot
	{ClassNode, "efi/loader/random-seed"},
	{ClassNode, "boot/loader/random-seed"},
	{ClassNode, "var/lib/systemd/credential.secret"},
	{ClassNode, "etc/iscsi/initiatorname.iscsi"},
	{ClassNode, "etc/nvme/hostnqn"},
	{ClassNode, "etc/nvme/hostid"},
	{ClassNode, "etc/hostid"},                        // ZFS, Lustre
	{ClassNode, "var/lib/dhcp/dhclient*.lease*"},     // with the DUID
	{ClassNode, "var/lib/dhclient/dhclient*.lease*"}, // Red Hat
	{ClassNode, "var/lib/dhcpcd/**"},                 // duid, secret, leases
	{ClassNode, "var/lib/dhcpv6/dhcp6c_duid"},        // wide-dhcpv6
	{ClassNode, "var/lib/wicked/duid.xml"},           // SUSE
	{ClassNode, "var/lib/wicked/iaid.xml"},           //
	{ClassNode, "var/lib/NetworkManager/secret_key"}, // stable-privacy addresses, DUID
	{ClassNode, "var/lib/tpm/**"},

	// Needed on every node to belong to the cluster.
	{ClassCluster, "etc/munge/munge.key"},
	{ClassCluster, "etc/slurm/slurm.key"},
	{ClassCluster, "etc/slurm-llnl/slurm.key"},
	{ClassCluster, "etc/shadow"},
	{ClassCluster, "etc/shadow-"},
	{ClassCluster, "etc/gshadow"},
	{ClassCluster, "etc/gshadow-"},
	{ClassCluster, "etc/sssd/sssd.conf"}, // may hold a bind password; sssd needs it
	{ClassCluster, "etc/sssd/conf.d/*"},
	{ClassCluster, "etc/nslcd.conf"},
	{ClassCluster, "etc/NetworkManager/system-connections/*"},
	{ClassCluster, "etc/netplan/*"},
	{ClassCluster, "etc/wpa_supplicant/*.conf"},
	{ClassCluster, "etc/libnss-ldap.conf"},
	{ClassCluster, "etc/pam_ldap.conf"},
	{ClassCluster, "etc/chrony/chrony.keys"},
	{ClassCluster, "etc/chrony.keys"},
	{ClassCluster, "etc/ntp.keys"},
	{ClassCluster, "etc/ntp/keys"},
	{ClassCluster, "etc/ntpsec/ntp.keys"},
	{ClassCluster, "etc/iscsi/iscsid.conf"},
	{ClassCluster, "etc/iscsi/nodes/**"},
	{ClassCluster, "var/lib/iscsi/nodes/**"},
	{ClassCluster, "etc/beegfs/conn*auth*"},
	{ClassCluster, "etc/condor/tokens.d/**"},

	// Copies of hashes of passwords: an install locks those in the files above.
	{ClassHead, "etc/shadow.*"}, // pwck, rpmsave
	{ClassHead, "etc/gshadow.*"},
	{ClassHead, "var/backups/shadow.bak"}, // Debian, daily
	{ClassHead, "var/backups/gshadow.bak"},
	{ClassHead, "etc/security/opasswd"}, // the passwords before
	{ClassHead, "var/lib/sss/db/**"},    // cached credentials
	{ClassHead, "var/lib/sss/secrets/**"},
	{ClassHead, "var/lib/cloud/**/user-data.txt*"}, // cloud-init's, with first passwords
	// Memory of the head's services.
	{ClassHead, "var/lib/systemd/coredump/**"},
	{ClassHead, "var/crash/**"},

	// slurm: the JWT key signs anyone's token, and the database's password.
	{ClassHead, "etc/slurm/jwt_hs256.key"},
	{ClassHead, "etc/slurm/jwt*.key"},
	{ClassHead, "etc/slurm-llnl/jwt*.key"},
	{ClassHead, "var/spool/slurm*/jwt*.key"},
	{ClassHead, "var/spool/slurm/statesave/jwt*.key"},
	{ClassHead, "var/lib/slurm/**/jwt*.key"},
	{ClassHead, "etc/slurm/slurmdbd.conf"},
	{ClassHead, "etc/slurm-llnl/slurmdbd.conf"},
	{ClassHead, "etc/slurm/slurmrestd*.key"},
	// TLS.
	{ClassHead, "etc/ssl/private/**"},
	{ClassHead, "etc/pki/tls/private/**"},
	{ClassHead, "etc/pki/CA/private/**"},
	{ClassHead, "etc/letsencrypt/archive/**/privkey*.pem"},
	{ClassHead, "etc/letsencrypt/live/**/privkey*.pem"},
	{ClassHead, "etc/letsencrypt/keys/**"},
	{ClassHead, "etc/letsencrypt/accounts/**/private_key.json"},
	{ClassHead, "var/lib/acme/**/privkey"},
	{ClassHead, "etc/openvpn/**/*.key"},
	{ClassHead, "etc/ipsec.secrets"},
	{ClassHead, "etc/ipsec.d/private/**"},
	{ClassHead, "etc/swanctl/private/**"},
	{ClassHead, "etc/wireguard/**"},
	{ClassHead, "var/lib/shim-signed/mok/*.priv"},
	{ClassHead, "var/lib/dkms/mok.key"},
	// Kerberos, directory and databases.
	{ClassHead, "etc/krb5.keytab"},
	{ClassHead, "etc/*.keytab"},
	{ClassHead, "etc/**/*.keytab"},
	{ClassHead, "var/lib/krb5kdc/**"},
	{ClassHead, "var/kerberos/krb5kdc/**"},
	{ClassHead, "etc/krb5kdc/stash"},
	{ClassHead, "etc/ldap.secret"},
	{ClassHead, "etc/pam_ldap.secret"},
	{ClassHead, "etc/libnss-ldap.secret"},
	{ClassHead, "etc/ldap/*.secret"},
	{ClassHead, "etc/openldap/*.secret"},
	{ClassHead, "etc/ldap/slapd.d/**"},
	{ClassHead, "etc/ldap/slapd.conf"},
	{ClassHead, "etc/openldap/slapd.d/**"},
	{ClassHead, "etc/openldap/slapd.conf"},
	{ClassHead, "etc/dirsrv/**"},
	{ClassHead, "var/lib/dirsrv/**"},
	{ClassHead, "var/lib/ipa/**"},
	{ClassHead, "var/lib/ldap/**"},
	{ClassHead, "var/lib/samba/private/**"},
	{ClassHead, "etc/samba/*credentials*"},
	{ClassHead, "etc/samba/smbpasswd"},
	{ClassHead, "etc/*credentials*"},
	{ClassHead, "etc/mysql/debian.cnf"},
	{ClassHead, "root/.my.cnf"},
	{ClassHead, "home/*/.my.cnf"},
	{ClassHead, "root/.mylogin.cnf"},
	{ClassHead, "home/*/.mylogin.cnf"},
	{ClassHead, "root/.pgpass"},
	{ClassHead, "home/*/.pgpass"},
	{ClassHead, "var/lib/mysql/**"}, // the accounts are tables
	{ClassHead, "var/lib/postgresql/**"},
	{ClassHead, "var/lib/pgsql/**"}, // Red Hat
	{ClassHead, "etc/redis/redis.conf"},
	// Cluster managers and file systems whose admin rights are in a file.
	{ClassHead, "etc/corosync/authkey"},
	{ClassHead, "etc/pacemaker/authkey"},
	{ClassHead, "etc/ceph/*.keyring"},
	{ClassHead, "etc/kubernetes/pki/**/*.key"},
	{ClassHead, "etc/kubernetes/*.conf"},
	{ClassHead, "etc/conserver/conserver.passwd"},
	{ClassHead, "etc/powerman/**"},
	{ClassHead, "etc/cluster/cluster.conf"},
	{ClassHead, "var/lib/pacemaker/cib/**"},
	{ClassHead, "var/lib/pcsd/**"},
	{ClassHead, "etc/keepalived/keepalived.conf"},
	{ClassHead, "etc/ha.d/authkeys"},
	{ClassHead, "etc/drbd.d/**"},
	{ClassHead, "etc/xcat/**"},
	{ClassHead, "root/.xcat/**"},
	{ClassHead, "etc/warewulf/nodes.conf"},
	{ClassHead, "etc/confluent/**"},
	{ClassHead, "cm/local/apps/cmd/etc/**"},
	{ClassHead, "var/lib/maas/**"},
	{ClassHead, "opt/fog/.fogsettings"},
	{ClassHead, "etc/cobbler/users.digest"},
	{ClassHead, "etc/cobbler/settings*"},
	{ClassHead, "etc/foreman/**"},
	{ClassHead, "etc/foreman-proxy/**"},
	{ClassHead, "var/spool/pbs/server_priv/**"},
	{ClassHead, "var/spool/torque/server_priv/**"},
	{ClassHead, "etc/condor/passwords.d/**"},
	{ClassHead, "var/lib/etcd/**"},
	{ClassHead, "var/lib/rancher/*/server/**"},
	{ClassHead, "etc/rancher/**"},
	{ClassHead, "var/lib/vault/**"},
	{ClassHead, "opt/vault/**"},
	{ClassHead, "etc/target/saveconfig.json"},
	{ClassHead, "etc/bind/*.key"},
	{ClassHead, "etc/rndc.key"},
	{ClassHead, "etc/named/*.key"},
	{ClassHead, "etc/dhcp/*.key"},
	{ClassHead, "etc/kea/*password*"},
	{ClassHead, "etc/rsyncd.secrets"},
	{ClassHead, "etc/freeradius/**"},
	{ClassHead, "etc/raddb/**"},
	{ClassHead, "etc/ppp/*-secrets"},
	{ClassHead, "etc/postfix/sasl_passwd*"},
	{ClassHead, "etc/ssmtp/ssmtp.conf"},
	{ClassHead, "etc/nullmailer/remotes"},
	{ClassHead, "etc/dovecot/users"},
	{ClassHead, "etc/dovecot/passwd"},
	{ClassHead, "etc/exim4/passwd.client"},
	{ClassHead, "etc/msmtprc"},
	{ClassHead, "etc/snmp/snmpd.conf"},
	{ClassHead, "var/lib/snmp/snmpd.conf"},
	{ClassHead, "etc/freeipmi/**"},
	{ClassHead, "etc/warewulf/keys/*.key"},
	// Root's and the users' own keys and tokens.
	{ClassHead, "root/.ssh/id_*"},
	{ClassHead, "root/.ssh/*.pem"},
	{ClassHead, "root/.ssh/*_key"},
	{ClassHead, "home/*/.ssh/id_*"},
	{ClassHead, "root/.gnupg/private-keys-v1.d/**"},
	{ClassHead, "root/.gnupg/secring.gpg"},
	{ClassHead, "home/*/.gnupg/private-keys-v1.d/**"},
	{ClassHead, "home/*/.gnupg/secring.gpg"},
	{ClassHead, "home/*/.ssh/*.pem"},
	{ClassHead, "home/*/.ssh/*_key"},
	{ClassHead, "root/.netrc"},
	{ClassHead, "home/*/.netrc"},
	{ClassHead, "root/.authinfo*"},
	{ClassHead, "home/*/.authinfo*"},
	{ClassHead, "root/.git-credentials"},
	{ClassHead, "home/*/.git-credentials"},
	{ClassHead, "root/.aws/credentials"},
	{ClassHead, "home/*/.aws/credentials"},
	{ClassHead, "root/.azure/**"},
	{ClassHead, "home/*/.azure/**"},
	{ClassHead, "root/.config/gcloud/**"},
	{ClassHead, "home/*/.config/gcloud/**"},
	{ClassHead, "root/.config/gh/hosts.yml"},
	{ClassHead, "home/*/.config/gh/hosts.yml"},
	{ClassHead, "root/.config/rclone/rclone.conf"},
	{ClassHead, "home/*/.config/rclone/rclone.conf"},
	{ClassHead, "root/.s3cfg"},
	{ClassHead, "home/*/.s3cfg"},
	{ClassHead, "root/.docker/config.json"},
	{ClassHead, "home/*/.docker/config.json"},
	{ClassHead, "root/.config/containers/auth.json"},
	{ClassHead, "home/*/.config/containers/auth.json"},
	{ClassHead, "root/.kube/config"},
	{ClassHead, "home/*/.kube/config"},
	{ClassHead, "root/.vault-token"},
	{ClassHead, "home/*/.vault-token"},
	{ClassHead, "root/.smbcredentials"},
	{ClassHead, "home/*/.smbcredentials"},
	{ClassHead, "root/.pypirc"},
	{ClassHead, "home/*/.pypirc"},
	{ClassHead, "root/.npmrc"},
	{ClassHead, "home/*/.npmrc"},
	{ClassHead, "root/.msmtprc"},
	{ClassHead, "home/*/.msmtprc"},
	{ClassHead, "root/.config/borg/**"},
	{ClassHead, "home/*/.config/borg/**"},
	{ClassHead, "root/.config/restic/**"},
	{ClassHead, "home/*/.config/restic/**"},
	// What was typed may hold passwords.
	{ClassHead, "root/.*_history"},
	{ClassHead, "home/*/.*_history"},
	{ClassHead, "root/.local/share/fish/fish_history"},
	{ClassHead, "home/*/.local/share/fish/fish_history"},
	{ClassHead, "etc/apt/auth.conf"},
	{ClassHead, "etc/apt/auth.conf.d/**"},
	{ClassHead, "etc/rhsm/**/*-key.pem"},
	{ClassHead, "etc/pki/entitlement/*-key.pem"},
	{ClassHead, "etc/pki/consumer/key.pem"},
	{ClassHead, "etc/credstore/**"},
	{ClassHead, "etc/credstore.encrypted/**"},
	{ClassHead, "etc/cryptsetup-keys.d/**"},
	{ClassHead, "etc/luks-keys/**"},
	{ClassHead, "etc/keys/**"},
	{ClassHead, "etc/zfs/keys/**"},
	{ClassHead, "boot/grub/user.cfg"},
	{ClassHead, "boot/grub2/user.cfg"},
	// Services whose configuration holds their passwords.
	{ClassHead, "etc/apache2/**/.htpasswd"},
	{ClassHead, "etc/apache2/**/htpasswd"},
	{ClassHead, "etc/httpd/**/.htpasswd"},
	{ClassHead, "etc/nginx/**/.htpasswd"},
	{ClassHead, "etc/nginx/**/htpasswd"},
	{ClassHead, "etc/bacula/**"},
	{ClassHead, "etc/bareos/**"},
	{ClassHead, "etc/borgmatic/**"},
	{ClassHead, "etc/restic/**"},
	{ClassHead, "etc/zypp/credentials.d/**"},
	{ClassHead, "etc/gitlab/gitlab-secrets.json"},
	{ClassHead, "var/lib/jenkins/secrets/**"},
	{ClassHead, "etc/grafana/grafana.ini"},
	{ClassHead, "etc/nagios*/**/resource.cfg"},
	{ClassHead, "etc/icinga2/**"},
	{ClassHead, "etc/zabbix/**"},
	{ClassHead, "etc/stunnel/psk*"},
}

// compiledRule is a rule ready to match.
type compiledRule struct {
	class Class
	glob  glob
}

// rulesBelow are the rules by the first element of their pattern, which none
// has a wildcard in: most files are below usr, where few rules are.
var rulesBelow = compileRules()

func compileRules() map[string][]compiledRule {
	m := make(map[string][]compiledRule)
	for _, r := range secretRules {
		g := glob(strings.Split(r.pattern, "/"))
		m[g[0]] = append(m[g[0]], compiledRule{r.class, g})
	}
	return m
}

// rulesDigest changes with the rules and with how DetectSecret decides: what a
// capture knew under others is not relied on.
func rulesDigest() [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "detect 3 %v", secretRules))
}

// Classify tells the class of the regular file at path by the table of
// secrets, and whether a rule knows the path at all. A file that none knows is
// to be looked into with DetectSecret.
func Classify(path string) (c Class, known bool) {
	first, _, _ := strings.Cut(path, "/")
	for _, r := range rulesBelow[first] {
		if r.glob.match(path) {
			return r.class, true
		}
	}
	// The audience keys of a doppel whose state is not in /var/lib/doppel.
	if strings.HasSuffix(path, "/keys/head.key") || strings.HasSuffix(path, "/keys/cluster.key") {
		return ClassHead, true
	}
	return ClassNone, false
}

// detectLength is how much of a file's beginning DetectSecret is given.
const detectLength = maxChunk

// DetectSecret tells whether the beginning of a file holds a private key: PEM
// of any kind and OpenSSH's, also inside YAML, JSON or a shell script, and the
// formats of detectMore; or the memory of a machine: a swap file (mkswap(8)
// signs the end of its first page). A program that merely knows the words holds
// none: what follows them must look like a key.
func DetectSecret(head []byte) bool {
	head = head[:min(len(head), detectLength)]
	if len(head) >= pageSize && string(head[pageSize-len(swapSignature):pageSize]) == swapSignature {
		return true
	}
	return detectPEM(head) || detectAge(head) || detectMore(head)
}

const (
	pageSize      = 4096 // of every kernel that doppel installs by default
	swapSignature = "SWAPSPACE2"
)

// detectPEM looks for -----BEGIN … PRIVATE KEY----- and a beginning of base64
// or of the headers of RFC 1421 behind it (RFC 7468, section 2 and 10 to 11).
func detectPEM(b []byte) bool {
	for {
		i := bytes.Index(b, []byte("-----BEGIN "))
		if i < 0 {
			return false
		}
		start := i == 0 || b[i-1] == byteOrderMark[2] || strings.IndexByte(" \t\r\n\"'`=:|(,>", b[i-1]) >= 0 ||
			i > 1 && b[i-2] == '\\' && b[i-1] == 'n' // within a JSON string, behind a certificate
		b = b[i+len("-----BEGIN "):]
		end := bytes.Index(b[:min(len(b), 64)], []byte("-----"))
		if !start || end < 0 || !isPrivateLabel(b[:end]) {
			continue
		}
		if looksLikeKey(b[end+len("-----"):]) {
			return true
		}
	}
}

// byteOrderMark is what some editors begin a file with.
const byteOrderMark = "\ufeff"

// isPrivateLabel tells whether a PEM label is of something to be kept: a private
// key, also a PGP one, or a key that OpenVPN's peers share.
func isPrivateLabel(label []byte) bool {
	return bytes.HasSuffix(bytes.TrimSuffix(label, []byte(" BLOCK")), []byte("PRIVATE KEY")) ||
		bytes.HasPrefix(label, []byte("OpenVPN Static key")) || bytes.HasPrefix(label, []byte("OpenVPN tls-crypt-v2"))
}

// looksLikeKey tells whether b, which follows the first line of a private key,
// begins with a line end and then with a header or a run of base64.
func looksLikeKey(b []byte) bool {
	line := false
	for len(b) > 0 {
		switch {
		case b[0] == '\r' || b[0] == '\n':
			line = true
			b = b[1:]
		case len(b) > 1 && b[0] == '\\' && (b[1] == 'n' || b[1] == 'r'):
			line = true
			b = b[2:]
		case b[0] == ' ' || b[0] == '\t' || b[0] == '"' || b[0] == '\'' || b[0] == '+':
			b = b[1:]
		default:
			for _, header := range []string{"Proc-Type:", "DEK-Info:", "Version:", "Comment:"} {
				if line && bytes.HasPrefix(b, []byte(header)) {
					return true
				}
			}
			return line && base64Run(b) >= 32
		}
	}
	return false
}

func base64Run(b []byte) int {
	for i, c := range b {
		if !(c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '/' || c == '=') {
			return i
		}
	}
	return len(b)
}

// detectAge looks for an age identity: AGE-SECRET-KEY-1 (or AGE-SECRET-KEY-PQ-1)
// and at least 50 characters of upper-case Bech32.
func detectAge(b []byte) bool {
	const bech32 = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"
	for {
		i := bytes.Index(b, []byte("AGE-SECRET-KEY-"))
		if i < 0 {
			return false
		}
		b = bytes.TrimPrefix(b[i+len("AGE-SECRET-KEY-"):], []byte("PQ-"))
		rest, ok := bytes.CutPrefix(b, []byte("1"))
		if !ok {
			continue
		}
		n := 0
		for n < len(rest) && strings.IndexByte(bech32, rest[n]) >= 0 {
			n++
		}
		if n >= 50 {
			return true
		}
	}
}
