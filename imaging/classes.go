package imaging

import (
	"crypto/sha256"
	"fmt"
	"path"
	"strings"
)

// rule puts the files that pattern stands for into a class.
type rule struct {
	class   Class
	pattern string
}

// secretRules is the whole of what doppel knows about secrets by name. The
// first rule that fits decides. A pattern counts from the root; one that begins
// with ** stands for a name in any directory, as homes are not always in /home.
//
// A file that no rule knows is looked into: Chunker.Secret.
//
// Head is the class to choose when in doubt: what a node is without shows at
// once, and what it has too much of never does.
var secretRules = [...]rule{
	// What a key pair shows to everyone, beside private halves below.
	{ClassNone, "etc/ssh/ssh_host_*_key.pub"},
	{ClassNone, "etc/ssh/ssh_host_*_key-cert.pub"},
	{ClassNone, "**/.ssh/*.pub"},
	{ClassNone, "**/.ssh/authorized_keys*"},
	{ClassNone, "**/.ssh/known_hosts*"},
	{ClassNone, "etc/letsencrypt/**/README"},
	{ClassNone, "etc/pki/tls/private/README*"},
	{ClassNone, "etc/wireguard/README*"},
	{ClassNone, "etc/openvpn/update-resolv-conf"},
	// Packages bring keys to test with and to explain; everyone has them.
	{ClassNone, "usr/share/doc/**"},
	{ClassNone, "usr/lib/python*/**/test/**"},
	{ClassNone, "usr/lib64/python*/**/test/**"},
	{ClassNone, "usr/lib/python*/**/tests/**"},
	{ClassNone, "usr/lib64/python*/**/tests/**"},
	{ClassNone, "usr/lib/go-*/src/**/testdata/**"},
	{ClassNone, "usr/share/go-*/src/**"},
	{ClassNone, "usr/share/gocode/src/**"},
	{ClassNone, "usr/share/cargo/registry/**"},
	{ClassNone, "usr/share/cmake-*/Templates/**"},
	{ClassNone, "usr/share/perl*/**/t/**"},
	{ClassNone, "usr/src/linux-*/**"},

	// One machine's own: made anew on a compute node, kept by heads.
	{ClassNode, "etc/ssh/ssh_host_key"}, // of SSH's first protocol
	{ClassNode, "etc/ssh/ssh_host_*_key"},
	{ClassNode, "etc/dropbear/dropbear_*_host_key"},
	{ClassNode, "etc/dropbear/initramfs/dropbear_*_host_key"},
	{ClassNode, "etc/dropbear-initramfs/dropbear_*_host_key"},
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
	{ClassNode, "var/lib/dhcpcd5/**"},
	{ClassNode, "etc/dhcpcd.duid"},
	{ClassNode, "etc/dhcpcd.secret"},
	{ClassNode, "var/lib/dhcpv6/dhcp6c_duid"},        // wide-dhcpv6
	{ClassNode, "var/lib/wicked/duid.xml"},           // SUSE
	{ClassNode, "var/lib/wicked/iaid.xml"},           //
	{ClassNode, "var/lib/NetworkManager/secret_key"}, // stable-privacy addresses, DUID
	{ClassNode, "var/lib/NetworkManager/*.lease"},

	// Needed on every node to belong to the cluster.
	{ClassCluster, "etc/munge/munge.key"},
	{ClassCluster, "etc/slurm/slurm.key"},
	{ClassCluster, "etc/slurm/slurm.jwks"}, // auth/slurm with several keys
	{ClassCluster, "etc/slurm-llnl/slurm.key"},
	{ClassCluster, "etc/flux/system/curve.cert"},
	{ClassCluster, "etc/condor/passwords.d/*"},
	{ClassCluster, "etc/condor/tokens.d/*"},
	{ClassCluster, "etc/beegfs/conn.auth"},
	{ClassCluster, "etc/beegfs/connauthfile"},
	{ClassCluster, "etc/lustre/**"},               // shared keys of clients
	{ClassCluster, "etc/411-security/shared.key"}, // Rocks
	{ClassCluster, "etc/lsf.sudoers"},
	{ClassCluster, "etc/shadow"},
	{ClassCluster, "etc/shadow-"},
	{ClassCluster, "etc/gshadow"},
	{ClassCluster, "etc/gshadow-"},
	{ClassCluster, "etc/sssd/sssd.conf"}, // may hold a bind password; sssd needs it
	{ClassCluster, "etc/sssd/conf.d/*"},
	{ClassCluster, "etc/nslcd.conf"},
	{ClassCluster, "etc/libnss-ldap.conf"},
	{ClassCluster, "etc/pam_ldap.conf"},
	{ClassCluster, "etc/sudo-ldap.conf"},
	{ClassCluster, "etc/autofs_ldap_auth.conf"},
	{ClassCluster, "etc/chrony.keys"}, // clients prove the server's time with them
	{ClassCluster, "etc/chrony/chrony.keys"},
	{ClassCluster, "etc/ntp.keys"},
	{ClassCluster, "etc/ntp/keys"},
	{ClassCluster, "etc/ntpsec/ntp.keys"},
	{ClassCluster, "etc/NetworkManager/system-connections/*"},
	{ClassCluster, "etc/netplan/*"},
	{ClassCluster, "boot/grub/user.cfg"}, // hash of GRUB's password
	{ClassCluster, "boot/grub2/user.cfg"},
	{ClassCluster, "etc/grub.d/01_users"},

	// Copies of hashes of passwords: an install locks those in the files above.
	{ClassHead, "etc/master.passwd"},
	{ClassHead, "var/backups/shadow*"}, // Debian, daily
	{ClassHead, "var/backups/gshadow*"},
	{ClassHead, "var/backups/**/*.ldif*"},
	{ClassHead, "var/backups/**/*.sql*"},
	{ClassHead, "var/backups/slapd*/**"},
	{ClassHead, "etc/security/opasswd"}, // the passwords before
	{ClassHead, "var/lib/sss/db/**"},    // cached credentials
	{ClassHead, "var/lib/sss/secrets/**"},
	{ClassHead, "var/lib/sss/keytabs/**"},
	{ClassHead, "var/lib/extrausers/shadow"},
	{ClassHead, "var/cache/debconf/passwords.dat*"}, // what packages asked for
	{ClassHead, "var/log/installer/cdebconf/**"},    // preseeded passwords
	{ClassHead, "var/log/installer/*user-data*"},    // preseeded passwords
	{ClassHead, "var/log/installer/curtin*"},        // preseeded passwords
	{ClassHead, "var/log/anaconda/**"},
	{ClassHead, "root/anaconda-ks.cfg"},
	{ClassHead, "root/original-ks.cfg"},
	{ClassHead, "root/initial-setup-ks.cfg"},
	{ClassHead, "etc/cloud/cloud.cfg.d/99-installer.cfg"},
	{ClassHead, "var/lib/cloud/**/user-data*"}, // cloud-init's, with first passwords
	{ClassHead, "var/lib/cloud/**/vendor-data*"},
	{ClassHead, "var/lib/cloud/**/cloud-config.txt"},
	{ClassHead, "var/lib/cloud/**/obj.pkl"},
	{ClassHead, "etc/dbconfig-common/**"}, // Debian's database passwords
	// Memory of the head's services.
	{ClassHead, "var/lib/systemd/coredump/**"},
	{ClassHead, "var/crash/**"},
	{ClassHead, "var/lib/apport/coredump/**"},
	{ClassHead, "var/spool/abrt/**"},

	// slurm: the JWT key signs anyone's token, and the database's password.
	{ClassHead, "etc/slurm/jwt*.key"},
	{ClassHead, "etc/slurm-llnl/jwt*.key"},
	{ClassHead, "var/spool/slurm*/jwt*.key"},
	{ClassHead, "var/spool/slurm*/**/jwt*.key"},
	{ClassHead, "var/lib/slurm*/**/jwt*.key"},
	{ClassHead, "etc/slurm/slurmdbd.conf"},
	{ClassHead, "etc/slurm-llnl/slurmdbd.conf"},
	{ClassHead, "etc/slurm/slurmrestd*.key"},
	{ClassHead, "etc/munge/**"}, // keys of before, and of other clusters
	{ClassHead, "etc/411-security/**"},
	// PBS, Torque, Moab.
	{ClassHead, "var/spool/pbs/server_priv/**"},
	{ClassHead, "var/spool/pbs/datastore/**"},
	{ClassHead, "var/spool/torque/server_priv/**"},
	{ClassHead, "opt/moab/**/.moab.key"},
	{ClassHead, "var/spool/moab/.moab.key"},
	// TLS.
	{ClassHead, "etc/ssl/private/**"},
	{ClassHead, "etc/ssl/*.key"},
	{ClassHead, "etc/pki/tls/private/**"},
	{ClassHead, "etc/pki/CA/private/**"},
	{ClassHead, "etc/pki/private/**"},
	{ClassHead, "etc/pki/libvirt/private/**"},
	{ClassHead, "etc/pki/libvirt*/**/*key.pem"},
	{ClassHead, "etc/pki/pki-tomcat/**"},
	{ClassHead, "etc/letsencrypt/archive/**/privkey*.pem"},
	{ClassHead, "etc/letsencrypt/live/**/privkey*.pem"},
	{ClassHead, "etc/letsencrypt/keys/**"},
	{ClassHead, "etc/letsencrypt/accounts/**/private_key.json"},
	{ClassHead, "etc/letsencrypt/**/*.ini"}, // DNS providers' tokens
	{ClassHead, "var/lib/acme/**/privkey"},
	{ClassHead, "etc/dehydrated/accounts/**"},
	{ClassHead, "**/.acme.sh/account.conf"},
	{ClassHead, "etc/easy-rsa/**/private/**"},
	{ClassHead, "etc/step-ca/secrets/**"},
	{ClassHead, "var/lib/shim-signed/mok/*.priv"},
	{ClassHead, "var/lib/dkms/mok.key"},
	{ClassHead, "etc/stunnel/psk*"},
	// VPN, and who may enter the network.
	{ClassHead, "etc/openvpn/**"},
	{ClassHead, "etc/ipsec.secrets"},
	{ClassHead, "etc/ipsec.d/*.secrets"},
	{ClassHead, "etc/ipsec.d/*.db"}, // libreswan
	{ClassHead, "etc/ipsec.d/private/**"},
	{ClassHead, "var/lib/ipsec/nss/**"},
	{ClassHead, "var/lib/strongswan/ipsec.secrets.inc"},
	{ClassHead, "etc/swanctl/private/**"},
	{ClassHead, "etc/swanctl/rsa/**"},
	{ClassHead, "etc/swanctl/ecdsa/**"},
	{ClassHead, "etc/swanctl/pkcs8/**"},
	{ClassHead, "etc/swanctl/pkcs12/**"},
	{ClassHead, "etc/swanctl/swanctl.conf"},
	{ClassHead, "etc/swanctl/conf.d/*"},
	{ClassHead, "etc/racoon/psk.txt"},
	{ClassHead, "etc/wireguard/**"},
	{ClassHead, "etc/tinc/**/*.priv"},
	{ClassHead, "etc/nebula/*.key"},
	{ClassHead, "etc/netbird/config.json"},
	{ClassHead, "var/lib/tailscale/tailscaled.state"},
	{ClassHead, "var/lib/zerotier-one/*.secret"},
	{ClassHead, "etc/xl2tpd/l2tp-secrets"},
	{ClassHead, "etc/vpnc/*.conf"},
	{ClassHead, "etc/ppp/*-secrets"},
	{ClassHead, "etc/wpa_supplicant/*.conf"},
	{ClassHead, "etc/wpa_supplicant.conf"},
	{ClassHead, "etc/hostapd/**"},
	{ClassHead, "var/lib/iwd/**"},
	{ClassHead, "etc/freeradius/**"},
	{ClassHead, "etc/raddb/**"},
	{ClassHead, "etc/pam_radius_auth.conf"},
	{ClassHead, "etc/radcli/servers"},
	{ClassHead, "etc/tacacs+/*.conf"},
	{ClassHead, "etc/users.oath"},
	{ClassHead, "etc/duo/*.conf"},
	{ClassHead, "etc/security/pam_duo.conf"},
	{ClassHead, "etc/privacyidea/**"},
	// Kerberos and directories.
	{ClassHead, "**/*.keytab"},
	{ClassHead, "var/lib/krb5kdc/**"},
	{ClassHead, "var/kerberos/krb5kdc/**"},
	{ClassHead, "etc/krb5kdc/**"},
	{ClassHead, "var/lib/gssproxy/**"},
	{ClassHead, "etc/ldap.secret"},
	{ClassHead, "etc/pam_ldap.secret"},
	{ClassHead, "etc/libnss-ldap.secret"},
	{ClassHead, "etc/ldap/*.secret"},
	{ClassHead, "etc/ldap/slapd.conf"},
	{ClassHead, "etc/ldap/slapd.d/**"},
	{ClassHead, "etc/ldap/sasl2/**"},
	{ClassHead, "etc/openldap/*.secret"},
	{ClassHead, "etc/openldap/slapd.conf"},
	{ClassHead, "etc/openldap/slapd.d/**"},
	{ClassHead, "etc/ldapscripts/ldapscripts.passwd"},
	{ClassHead, "etc/smbldap-tools/smbldap_bind.conf"},
	{ClassHead, "var/lib/ldap/**"},
	{ClassHead, "var/lib/openldap/**"},
	{ClassHead, "etc/dirsrv/**"},
	{ClassHead, "var/lib/dirsrv/**"},
	{ClassHead, "etc/ipa/custodia/**"},
	{ClassHead, "var/lib/ipa/**"},
	{ClassHead, "etc/sasldb2"},
	{ClassHead, "var/lib/samba/private/**"},
	{ClassHead, "var/lib/samba/*.tdb"},
	{ClassHead, "etc/samba/*.tdb"},
	{ClassHead, "etc/samba/smbpasswd"},
	{ClassHead, "etc/samba/*secret*"},
	{ClassHead, "etc/samba/*cred*"},
	{ClassHead, "etc/cifs*"},
	{ClassHead, "etc/*credentials*"},
	{ClassHead, "**/.smbcredentials"},
	{ClassHead, "**/.credentials"},
	// Databases: their accounts are tables, and so is what they hold.
	{ClassHead, "etc/mysql/debian.cnf"},
	{ClassHead, "**/.my.cnf"},
	{ClassHead, "**/.mylogin.cnf"},
	{ClassHead, "**/.pgpass"},
	{ClassHead, "**/.pg_service.conf"},
	{ClassHead, "var/lib/mysql/**"},
	{ClassHead, "var/lib/mysql-keyring/**"},
	{ClassHead, "var/lib/postgresql/**"},
	{ClassHead, "var/lib/pgsql/**"}, // Red Hat
	{ClassHead, "etc/pgbouncer/**"},
	{ClassHead, "var/lib/mongodb/**"},
	{ClassHead, "var/lib/mongo/**"},
	{ClassHead, "etc/redis/**"},
	{ClassHead, "etc/redis.conf"},
	{ClassHead, "var/lib/redis/**"},
	{ClassHead, "var/lib/influxdb/**"},
	{ClassHead, "var/lib/etcd/**"},
	{ClassHead, "etc/etcd/**"},
	{ClassHead, "etc/default/etcd"},
	{ClassHead, "**/.erlang.cookie"},
	// Pairs of heads, and file systems whose admin rights are in a file.
	{ClassHead, "etc/corosync/authkey"},
	{ClassHead, "etc/pacemaker/authkey"},
	{ClassHead, "var/lib/pacemaker/**"}, // with fence devices' passwords
	{ClassHead, "var/lib/pcsd/**"},
	{ClassHead, "etc/cluster/**"},
	{ClassHead, "etc/ha.d/authkeys"},
	{ClassHead, "etc/keepalived/**"},
	{ClassHead, "etc/drbd.d/**"},
	{ClassHead, "etc/ceph/*.keyring"},
	{ClassHead, "etc/ceph/*.secret"},
	{ClassHead, "var/lib/ceph/**/keyring"},
	{ClassHead, "var/mmfs/ssl/**"}, // Storage Scale
	{ClassHead, "var/mmfs/gen/**"},
	{ClassHead, "var/cache/opensm/**"},   // M_Keys
	{ClassHead, "etc/iscsi/iscsid.conf"}, // CHAP
	{ClassHead, "etc/iscsi/nodes/**"},
	{ClassHead, "etc/iscsi/send_targets/**"},
	{ClassHead, "var/lib/iscsi/**"},
	{ClassHead, "etc/tgt/**"},
	{ClassHead, "etc/target/**"},
	{ClassHead, "etc/rtslib-fb-target/**"},
	{ClassHead, "etc/nvme/config.json"}, // DH-HMAC-CHAP
	{ClassHead, "etc/nvme/discovery.conf"},
	{ClassHead, "etc/multipath/prkeys"},
	{ClassHead, "etc/zfs/keys/**"},
	{ClassHead, "etc/zfs/*.key"},
	{ClassHead, "etc/cryptsetup-keys.d/**"},
	{ClassHead, "etc/luks/**"},
	{ClassHead, "etc/luks-keys/**"},
	{ClassHead, "etc/keys/**"},
	{ClassHead, "crypto_keyfile.bin"},
	{ClassHead, "boot/crypto_keyfile.bin"},
	{ClassHead, "**/*.keyfile"},
	{ClassHead, "etc/clevis/**"},
	{ClassHead, "var/db/tang/**"},
	{ClassHead, "var/lib/tang/**"},
	{ClassHead, "var/lib/tpm/**"},
	{ClassHead, "var/lib/tpm2-tss/**"},
	{ClassHead, "var/lib/tpm2-pkcs11/**"},
	{ClassHead, "etc/tpm2_pkcs11/**"},
	{ClassHead, "var/lib/softhsm/**"},
	{ClassHead, "var/lib/swtpm-localca/**"},
	{ClassHead, "var/lib/libvirt/swtpm/**"},
	{ClassHead, "var/lib/libvirt/secrets/**"},
	{ClassHead, "etc/libvirt/secrets/**"},
	{ClassHead, "etc/libvirt/passwd.db"},
	{ClassHead, "etc/pve/**"},
	{ClassHead, "var/lib/pve-cluster/**"},
	{ClassHead, "etc/credstore/**"},
	{ClassHead, "etc/credstore.encrypted/**"},
	// Containers and what runs them.
	{ClassHead, "**/.docker/config.json"},
	{ClassHead, "**/.dockercfg"},
	{ClassHead, "**/.config/containers/auth.json"},
	{ClassHead, "etc/docker/key.json"},
	{ClassHead, "etc/docker/certs.d/**/*.key"},
	{ClassHead, "var/lib/docker/swarm/**"},
	{ClassHead, "var/lib/containers/storage/secrets/**"},
	{ClassHead, "**/.singularity/docker-config.json"},
	{ClassHead, "**/.singularity/remote.yaml"},
	{ClassHead, "**/.singularity/sypgp/pgp-secret"},
	{ClassHead, "**/.singularity/keys/pgp-secret"},
	{ClassHead, "**/.apptainer/docker-config.json"},
	{ClassHead, "**/.apptainer/remote.yaml"},
	{ClassHead, "**/.apptainer/keys/pgp-secret"},
	{ClassHead, "etc/kubernetes/pki/**/*.key"},
	{ClassHead, "etc/kubernetes/*.conf"},
	{ClassHead, "etc/kubernetes/**/*token*"},
	{ClassHead, "var/lib/kubelet/pki/**"},
	{ClassHead, "var/lib/kubelet/config.json"},
	{ClassHead, "**/.kube/config"},
	{ClassHead, "etc/rancher/**"},
	{ClassHead, "var/lib/rancher/*/server/**"},
	{ClassHead, "var/lib/k0s/pki/**"},
	{ClassHead, "etc/vault.d/**"},
	{ClassHead, "opt/vault/**"},
	{ClassHead, "var/lib/vault/**"},
	{ClassHead, "etc/consul.d/**"},
	{ClassHead, "etc/nomad.d/**"},
	// Clouds.
	{ClassHead, "**/.aws/credentials"},
	{ClassHead, "**/.aws/config"},
	{ClassHead, "**/.aws/**/cache/*.json"},
	{ClassHead, "**/.azure/**"},
	{ClassHead, "**/.config/gcloud/**"},
	{ClassHead, "**/.boto"},
	{ClassHead, "etc/boto.cfg"},
	{ClassHead, "**/.s3cfg"},
	{ClassHead, "**/.passwd-s3fs"},
	{ClassHead, "etc/passwd-s3fs"},
	{ClassHead, "**/.oci/**"},
	{ClassHead, "**/.config/openstack/*"},
	{ClassHead, "etc/openstack/*"},
	{ClassHead, "etc/keystone/**"},
	{ClassHead, "etc/kolla/**"},
	{ClassHead, "root/*openrc*"},
	{ClassHead, "**/.config/rclone/*"},
	{ClassHead, "**/.rclone.conf"},
	{ClassHead, "**/.terraform.d/credentials*"},
	{ClassHead, "**/*.tfstate"},
	{ClassHead, "etc/grid-security/**/*key.pem"},
	{ClassHead, "**/.globus/**"},
	{ClassHead, "**/.globusonline/**"},
	{ClassHead, "var/lib/globus-connect-server/**"},
	// Control of hardware: BMCs, power, consoles, switches.
	{ClassHead, "etc/freeipmi/**"},
	{ClassHead, "etc/ipmi*"},
	{ClassHead, "etc/ipmitool/**"},
	{ClassHead, "etc/powerman/**"},
	{ClassHead, "etc/conman.conf"},
	{ClassHead, "etc/conserver/conserver.passwd"},
	{ClassHead, "etc/conserver/conserver.cf"},
	{ClassHead, "**/.ipmi*"},
	{ClassHead, "**/.cloginrc"},
	{ClassHead, "etc/oxidized/**"},
	{ClassHead, "etc/nut/**"},
	{ClassHead, "etc/snmp/snmpd.conf"},
	{ClassHead, "etc/snmp/snmptrapd.conf"},
	{ClassHead, "var/lib/snmp/**"},
	{ClassHead, "var/lib/net-snmp/**"},
	// Tools that install and configure clusters, with their passwords, and the
	// trees they install.
	{ClassHead, "etc/xcat/**"},
	{ClassHead, "root/.xcat/**"},
	{ClassHead, "install/autoinst/**"},
	{ClassHead, "install/postscripts/_ssh/**"},
	{ClassHead, "install/postscripts/hostkeys/**"},
	{ClassHead, "install/postscripts/ca/**"},
	{ClassHead, "install/postscripts/cert/**"},
	{ClassHead, "install/netboot/**/etc/shadow"},
	{ClassHead, "etc/warewulf/**"},
	{ClassHead, "usr/local/etc/warewulf/**"},
	{ClassHead, "var/lib/warewulf/**/etc/shadow"},
	{ClassHead, "var/lib/warewulf/overlays/**"},
	{ClassHead, "var/lib/warewulf/provision/**"},
	{ClassHead, "srv/warewulf/**/etc/shadow"},
	{ClassHead, "srv/warewulf/overlays/**"},
	{ClassHead, "opt/rocks/etc/my.cnf"},
	{ClassHead, "**/.rocks.my.cnf"},
	{ClassHead, "etc/cobbler/**"},
	{ClassHead, "var/lib/cobbler/web.ss"},
	{ClassHead, "var/lib/cobbler/autoinstall_templates/**"},
	{ClassHead, "cm/local/apps/**/etc/*.key"}, // Bright
	{ClassHead, "cm/local/apps/cmd/etc/**"},
	{ClassHead, "root/.cm/**"},
	{ClassHead, "etc/confluent/**"},
	{ClassHead, "etc/perceus/**"},
	{ClassHead, "etc/odapw"}, // OSCAR
	{ClassHead, "etc/grendel/**"},
	{ClassHead, "opt/fog/.fogsettings"},
	{ClassHead, "etc/clusterware/**"},
	{ClassHead, "etc/scyld-clusterware/**"},
	{ClassHead, "trinity/local/**/luna.ini"},
	{ClassHead, "etc/maas/**"},
	{ClassHead, "var/lib/maas/**"},
	{ClassHead, "etc/ironic/**"},
	{ClassHead, "etc/foreman/**"},
	{ClassHead, "etc/foreman-proxy/**"},
	{ClassHead, "etc/foreman-installer/**"},
	{ClassHead, "etc/puppet/ssl/**"},
	{ClassHead, "etc/puppetlabs/puppet/ssl/private_keys/**"},
	{ClassHead, "etc/puppetlabs/puppet/ssl/ca/**"},
	{ClassHead, "etc/puppetlabs/puppet/eyaml/private*"},
	{ClassHead, "etc/puppetlabs/puppetserver/ca/**"},
	{ClassHead, "etc/puppetlabs/puppetdb/ssl/**"},
	{ClassHead, "var/lib/puppet/ssl/**"},
	{ClassHead, "etc/chef/*.pem"},
	{ClassHead, "**/.chef/**"},
	{ClassHead, "etc/salt/pki/**"},
	{ClassHead, "var/lib/cfengine3/ppkeys/*.priv"},
	{ClassHead, "var/cfengine/ppkeys/*.priv"},
	{ClassHead, "**/.vault_pass*"},
	{ClassHead, "etc/ansible/*vault*"},
	// Names, addresses, mail.
	{ClassHead, "etc/bind/*.key"},
	{ClassHead, "etc/bind/keys/**"},
	{ClassHead, "var/lib/bind/**/*.private"},
	{ClassHead, "var/cache/bind/**/*.private"},
	{ClassHead, "var/named/**/*.private"},
	{ClassHead, "etc/rndc.key"},
	{ClassHead, "etc/rndc.conf"},
	{ClassHead, "etc/named.keys"},
	{ClassHead, "etc/named/*.key"},
	{ClassHead, "etc/unbound/*.key"},
	{ClassHead, "etc/nsd/*.key"},
	{ClassHead, "etc/powerdns/**"},
	{ClassHead, "etc/pdns/**"},
	{ClassHead, "etc/dhcp/dhcpd*.conf"}, // OMAPI and DDNS keys
	{ClassHead, "etc/dhcp/ddns-keys/**"},
	{ClassHead, "etc/dhcp/*.key"},
	{ClassHead, "etc/kea/**"},
	{ClassHead, "etc/postfix/sasl_passwd*"},
	{ClassHead, "etc/postfix/**/*mysql*"},
	{ClassHead, "etc/postfix/**/*ldap*"},
	{ClassHead, "etc/exim4/passwd.client"},
	{ClassHead, "etc/ssmtp/ssmtp.conf"},
	{ClassHead, "etc/nullmailer/remotes"},
	{ClassHead, "etc/msmtprc"},
	{ClassHead, "**/.msmtprc"},
	{ClassHead, "**/.authinfo*"},
	{ClassHead, "etc/mail/authinfo*"},
	{ClassHead, "etc/mail/auth/**"},
	{ClassHead, "etc/dovecot/private/**"},
	{ClassHead, "etc/dovecot/*passwd*"},
	{ClassHead, "etc/dovecot/users"},
	{ClassHead, "etc/dovecot/*sql*"},
	{ClassHead, "etc/dkimkeys/**"},
	{ClassHead, "etc/opendkim/keys/**"},
	// Watching and the web.
	{ClassHead, "etc/nagios*/private/**"},
	{ClassHead, "etc/nagios*/**/htpasswd*"},
	{ClassHead, "etc/nagios*/**/resource.cfg"},
	{ClassHead, "etc/icinga2/**"},
	{ClassHead, "etc/icingaweb2/**"},
	{ClassHead, "var/lib/icinga2/**/*.key"},
	{ClassHead, "etc/zabbix/**"},
	{ClassHead, "etc/grafana/**"},
	{ClassHead, "var/lib/grafana/**"},
	{ClassHead, "etc/prometheus/**"},
	{ClassHead, "etc/alertmanager/**"},
	{ClassHead, "etc/xdmod/**"},
	{ClassHead, "etc/ood/**"}, // Open OnDemand
	{ClassHead, "etc/jupyterhub/**"},
	{ClassHead, "srv/jupyterhub/**"},
	{ClassHead, "**/jupyterhub_cookie_secret"},
	{ClassHead, "etc/gitlab/**"},
	{ClassHead, "etc/gitlab-runner/**"},
	{ClassHead, "etc/gitea/**"},
	{ClassHead, "etc/cloudflared/**"},
	{ClassHead, "**/.cloudflared/**"},
	{ClassHead, "**/.htpasswd"},
	{ClassHead, "etc/*/*htpasswd*"},
	{ClassHead, "etc/apache2/**/htpasswd*"},
	{ClassHead, "etc/nginx/**/htpasswd*"},
	{ClassHead, "var/lib/jenkins/secrets/**"},
	{ClassHead, "**/wp-config.php"},
	{ClassHead, "etc/phpmyadmin/*.php"},
	{ClassHead, "etc/roundcube/*.php"},
	{ClassHead, "**/.env"},
	{ClassHead, "**/keystore.jks"},
	{ClassHead, "etc/xrdp/rsakeys.ini"},
	{ClassHead, "**/.vnc/passwd"},
	{ClassHead, "**/.config/tigervnc/passwd"},
	// Backups open everything.
	{ClassHead, "**/.config/borg/**"},
	{ClassHead, "**/.borg*"},
	{ClassHead, "etc/borg*/**"},
	{ClassHead, "etc/restic/**"},
	{ClassHead, "**/.config/restic/**"},
	{ClassHead, "**/.restic*"},
	{ClassHead, "**/.config/kopia/**"},
	{ClassHead, "etc/bacula/**"},
	{ClassHead, "etc/bareos/**"},
	{ClassHead, "etc/amanda/**"},
	{ClassHead, "**/.am_passphrase"},
	{ClassHead, "etc/backuppc/**"},
	{ClassHead, "etc/burp/**"},
	{ClassHead, "etc/duply/**"},
	{ClassHead, "**/.duply/**"},
	{ClassHead, "etc/rsyncd.secrets"},
	{ClassHead, "**/.rsync*pass*"},
	{ClassHead, "etc/adsm/**"},
	{ClassHead, "**/TSM.PWD"},
	{ClassHead, "**/TSM.sth"},
	{ClassHead, "**/TSM.KDB"},
	{ClassHead, "root/*.key"},
	{ClassHead, "root/*.p12"},
	// Packages and subscriptions.
	{ClassHead, "etc/apt/auth.conf"},
	{ClassHead, "etc/apt/auth.conf.d/**"},
	{ClassHead, "etc/zypp/credentials.d/**"},
	{ClassHead, "etc/rhsm/**/*-key.pem"},
	{ClassHead, "etc/pki/entitlement/*-key.pem"},
	{ClassHead, "etc/pki/consumer/key.pem"},
	{ClassHead, "etc/sysconfig/rhn/systemid"},
	{ClassHead, "var/lib/ubuntu-advantage/private/**"},
	{ClassHead, "etc/ubuntu-advantage/**"},
	{ClassHead, "etc/landscape/client.conf"},
	// Root's and the users' own keys, tokens and memories.
	{ClassHead, "**/.ssh/id_*"},
	{ClassHead, "**/.ssh/identity"},
	{ClassHead, "**/.ssh/*.pem"},
	{ClassHead, "**/.ssh/*.ppk"},
	{ClassHead, "**/.ssh/*_key"},
	{ClassHead, "**/.gnupg/private-keys-v1.d/**"},
	{ClassHead, "**/private-keys-v1.d/**"},
	{ClassHead, "**/secring.gpg"},
	{ClassHead, "**/.config/sops/age/**"},
	{ClassHead, "**/.config/age/**"},
	{ClassHead, "**/.netrc"},
	{ClassHead, "**/.git-credentials"},
	{ClassHead, "**/.config/git/credentials"},
	{ClassHead, "**/.config/gh/hosts.yml"},
	{ClassHead, "**/.config/glab-cli/config.yml"},
	{ClassHead, "**/.vault-token"},
	{ClassHead, "**/.npmrc"},
	{ClassHead, "**/.pypirc"},
	{ClassHead, "**/.cargo/credentials*"},
	{ClassHead, "**/.gem/credentials"},
	{ClassHead, "**/.m2/settings*.xml"},
	{ClassHead, "**/.subversion/auth/**"},
	{ClassHead, "**/.cache/huggingface/token"},
	{ClassHead, "**/.huggingface/token"},
	{ClassHead, "**/.google_authenticator"},
	{ClassHead, "**/.local/share/keyrings/**"},
	{ClassHead, "**/.local/share/kwalletd/**"},
	{ClassHead, "**/.mozilla/**/key*.db"},
	{ClassHead, "**/.mozilla/**/logins.json"},
	{ClassHead, "**/.pki/nssdb/key*.db"},
	{ClassHead, "**/.Xauthority"},
	{ClassHead, "**/.*_history"}, // passwords are typed where they should not be
	{ClassHead, "**/.history"},
	{ClassHead, "**/.local/share/fish/fish_history"},
	{ClassHead, "**/.viminfo"},

	// The audience keys of a doppel whose state is not in /var/lib/doppel.
	{ClassHead, "**/keys/head.key"},
	{ClassHead, "**/keys/cluster.key"},
}

// compiledRule is a rule ready to match. The lowest number decides.
type compiledRule struct {
	number int
	class  Class
	glob   glob
}

// compiledRules are the rules by what they are found by, as no file is to be
// held against all of them: the directories that a pattern begins with, up to its
// first wildcard; or for those that count from anywhere, their first element
// without one, or the ending.
type compiledRules struct {
	below   rulesBelow
	element map[string][]compiledRule
	first   [256]bool      // bytes that the elements begin with
	dot     []compiledRule // of names with a dot in front, and wildcards: .*_history
	ending  map[string][]compiledRule
}

// rulesBelow are the rules whose patterns have their first wildcard, or their
// end, in one directory, and those of the directories in it.
type rulesBelow struct {
	rules []compiledRule
	in    map[string]*rulesBelow
}

var rules = compileRules()

func compileRules() *compiledRules {
	c := &compiledRules{element: make(map[string][]compiledRule), ending: make(map[string][]compiledRule)}
	for i, r := range secretRules {
		g := glob(strings.Split(r.pattern, "/"))
		compiled := compiledRule{i, r.class, g}
		ending, isEnding := strings.CutPrefix(g[len(g)-1], "*")
		switch {
		case g[0] != "**":
			at := &c.below
			for _, element := range g {
				if strings.ContainsAny(element, "*?[") {
					break
				}
				if at.in[element] == nil {
					if at.in == nil {
						at.in = make(map[string]*rulesBelow)
					}
					at.in[element] = &rulesBelow{}
				}
				at = at.in[element]
			}
			at.rules = append(at.rules, compiled)
		case !strings.ContainsAny(g[1], "*?["):
			c.element[g[1]] = append(c.element[g[1]], compiled)
			c.first[g[1][0]] = true
		case isEnding && len(g) == 2 && path.Ext(ending) == ending:
			c.ending[ending] = append(c.ending[ending], compiled)
		default:
			c.dot = append(c.dot, compiled)
		}
	}
	return c
}

// find gives the first rule that fits; nil: none does.
func (c *compiledRules) find(p string) *compiledRule {
	f := finding{path: p}
	below := &c.below
	for start := 0; start < len(p); {
		end := len(p)
		if i := strings.IndexByte(p[start:], '/'); i >= 0 {
			end = start + i
		}
		element := p[start:end]
		if below != nil {
			if below = below.in[element]; below != nil {
				f.try(below.rules)
			}
		}
		if element != "" && c.first[element[0]] {
			f.try(c.element[element])
		}
		if end == len(p) && element != "" && element[0] == '.' {
			f.try(c.dot)
		}
		start = end + 1
	}
	f.try(c.ending[path.Ext(p)])
	return f.rule
}

// finding is the search for the rule of one path.
type finding struct {
	path string
	rule *compiledRule
}

func (f *finding) try(list []compiledRule) {
	for i := range list {
		if r := &list[i]; (f.rule == nil || r.number < f.rule.number) && r.glob.match(f.path) {
			f.rule = r
		}
	}
}

// rulesDigest changes with the rules and with how Chunker.Secret decides: what a
// capture knew under others is not relied on.
func rulesDigest() [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "detect 3 %v", secretRules))
}

// Classify tells the class of the regular file at path by the table of
// secrets, and whether a rule knows the path at all. A file that none knows is
// to be looked into with Chunker.Secret.
//
// A copy beside a secret, by its name, is for heads only: no node needs it, nor
// is it made anew or locked there.
func Classify(p string) (c Class, known bool) {
	if r := rules.find(p); r != nil {
		return r.class, true
	}
	if isCopy(p) {
		return ClassHead, true
	}
	return ClassNone, false
}

// isCopy tells whether the name of a file is that of a secret with something
// behind it, as editors, packages and people name what they keep from before:
// munge.key.bak, munge.key~, munge.key-2019, .munge.key.swp. Below usr, where
// most files are, only usr/local is anyone's to copy in.
func isCopy(p string) bool {
	if strings.HasPrefix(p, "usr/") && !strings.HasPrefix(p, "usr/local/") {
		return false
	}
	dir, base := path.Split(p)
	if isCopyOf(dir, base) {
		return true
	}
	hidden := strings.HasPrefix(path.Ext(base), ".sw") || strings.HasSuffix(base, "#")
	return hidden && isCopyOf(dir, strings.TrimLeft(base, ".#"))
}

func isCopyOf(dir, base string) bool {
	for i := len(base) - 1; i > 0; i-- {
		if strings.IndexByte(".-_~#", base[i]) >= 0 {
			if r := rules.find(dir + base[:i]); r != nil {
				return r.class != ClassNone
			}
		}
	}
	return false
}
