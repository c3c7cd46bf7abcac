// Package lab makes virtual clusters on one machine, out of real parts: a
// private switch (a bridge in a network namespace of its own), hosts
// (namespaces on the switch), a Debian head with its real sshd, and machines
// that are QEMU processes with SeaBIOS or OVMF, a blank disk, and a network
// card that boots first. A Double is a node without a machine: doppel's agent in
// namespaces whose root is a disk of its own.
//
// A Lab owns everything that it starts. Close ends exactly that: the
// processes by their pid, the namespaces by their names (which carry the
// lab's id), the directory. If the process that made the lab is killed, the
// kernel ends its children with it, and the next New clears away the
// namespaces of labs whose maker is gone.
//
// Nothing of a lab can reach the machine's own networks: the switch has no
// uplink, and no host forwards.
//
// A lab needs root, for namespaces, and the Debian packages that the Makefile
// lists. Machines run under KVM when a probe guest really boots under it, and
// otherwise in software.
package lab
