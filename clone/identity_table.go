package clone

// identityRules is the one table of files that say which machine a tree is.
// Whatever is not named here must be equal on every double of an image.
func identityRules() []Rule {
	identity := func(role, words string, patterns ...string) []Rule { return rules(WhyIdentity, role, words, patterns) }
	boot := func(words string, patterns ...string) []Rule { return rules(WhyBoot, "", words, patterns) }
	agent := func(words string, patterns ...string) []Rule { return rules(WhyAgent, "", words, patterns) }
	runtime := func(words string, patterns ...string) []Rule { return rules(WhyRuntime, "", words, patterns) }

	var all []Rule
	for _, group := range [][]Rule{
		identity("", "the host's name", "etc/hostname", "etc/mailname"),
		derived(identity("", "names of hosts, this one's own among them", "etc/hosts")),
		identity("", "what is mounted where", "etc/fstab"),
		identity("", "the machine's id", "etc/machine-id", "var/lib/dbus/machine-id"),
		identity("", "network configuration of ifupdown", "etc/network/interfaces", "etc/network/interfaces.d/**", "etc/systemd/network/10-doppel.link"),
		identity("", "network configuration of NetworkManager", "etc/NetworkManager/system-connections/**", "etc/sysconfig/network-scripts/ifcfg-*"),
		identity("", "network configuration of systemd-networkd", "etc/systemd/network/*.network",
			"etc/systemd/system/multi-user.target.wants/systemd-networkd.service", "etc/systemd/system/dbus-org.freedesktop.network1.service"),
		identity("", "network configuration of netplan", "etc/netplan/**", "etc/cloud/cloud.cfg.d/99-doppel-network.cfg"),
		identity("", "name servers", "etc/resolv.conf"),
		identity(roleCompute, "SSH host keys, generated anew", "etc/ssh/ssh_host_*"),
		derived(identity(roleCompute, "password hashes, locked", "etc/shadow", "etc/shadow-", "etc/gshadow", "etc/gshadow-")),
		identity("", "the random seed", "var/lib/systemd/random-seed", "var/lib/urandom/random-seed", "boot/efi/loader/random-seed"),
		identity("", "storage initiator names", "etc/iscsi/initiatorname.iscsi", "etc/nvme/hostnqn", "etc/nvme/hostid"),
		identity("", "the key of sealed service credentials", "var/lib/systemd/credential.secret"),
		identity("", "DHCP leases and client ids", "var/lib/dhcp/**", "var/lib/dhcpcd/**", "var/lib/dhcpcd5/**", "etc/dhcpcd.duid", "var/lib/NetworkManager/**", "var/lib/systemd/network/**"),

		boot("GRUB's files for this machine", "boot/grub/**", "boot/grub2/**", "etc/default/grub.d", "etc/default/grub.d/doppel.cfg", "boot/loader/entries/**", "etc/kernel/cmdline"),
		boot("the EFI system partition", "boot/efi/**", "efi/**"),

		agent("doppel's agent", "usr/lib/doppel/**", "etc/systemd/system/doppel-agent.service", "etc/systemd/system/multi-user.target.wants", "etc/systemd/system/multi-user.target.wants/doppel-agent.service"),
		agent("the node's own credentials", "etc/doppel", "etc/doppel/node/**"),
		agent("doppel's state", "var/lib/doppel", "var/lib/doppel/**"),

		runtime("logs", "var/log/**"),
		taken(runtime("what packages note of their units and files", "var/lib/systemd/deb-systemd-*/**", "var/lib/ucf/**")),
		runtime("state of system services", "var/lib/systemd/**", "var/lib/private/**", "var/lib/dbus", "var/lib/logrotate/**",
			"var/lib/misc/**", "var/lib/apt/daily_lock", "var/lib/apt/periodic/**", "var/lib/apt/lists/**", "var/lib/dpkg/lock", "var/lib/dpkg/lock-frontend",
			"var/lib/man-db/**", "var/lib/munge/**", "var/lib/chrony/**", "var/lib/ntpsec/**", "var/lib/plymouth/**", "var/lib/sudo/**", "var/lib/polkit-1/**", "var/lib/udisks2/**", "var/lib/os-prober/**",
			"var/lib/initramfs-tools", "var/lib/grub/**"),
		taken(runtime("what is made of other files", "etc/ld.so.cache", "etc/udev/hwdb.bin", "usr/lib/udev/hwdb.bin", "etc/mtab")),
		runtime("caches", "var/cache/**", "etc/.updated", "var/.updated", "etc/.pwd.lock", "etc/adjtime"),
		runtime("mail queues and spools", "var/spool/anacron/**", "var/spool/cron/atjobs/.SEQ", "var/spool/rsyslog/**", "var/mail/**"),
		runtime("the files of one run", "run/**", "var/run/**", "tmp/**", "var/tmp/**", "dev/**", "proc/**", "sys/**", "var/lock/**"),
		runtime("what a file system's check found", "lost+found", "*/lost+found", "*/*/lost+found"),
		runtime("a shell's history", "root/.bash_history", "root/.lesshst", "root/.viminfo"),
		runtime("SELinux relabelling", ".autorelabel"),
	} {
		all = append(all, group...)
	}
	return all
}

// derived and taken say what an update in place does with paths that may
// differ; the node keeps all others as they are.
func derived(rules []Rule) []Rule { return inPlace(rules, Derived) }
func taken(rules []Rule) []Rule   { return inPlace(rules, Taken) }

func inPlace(rules []Rule, what InPlace) []Rule {
	for i := range rules {
		rules[i].InPlace = what
	}
	return rules
}

func rules(why Why, role, words string, patterns []string) []Rule {
	out := make([]Rule, 0, len(patterns))
	for _, p := range patterns {
		out = append(out, Rule{Pattern: p, Why: why, Role: role, Words: words})
	}
	return out
}
