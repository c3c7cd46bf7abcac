// Package pxe decides what each machine boots, and has it ready.
//
// # Words
//
// A client is what asks: a boot ROM (BIOS or UEFI), a UEFI HTTP boot client,
// iPXE, or an operating system that only wants an address. A decision is the
// answer: an address, the file that DHCP names, and what iPXE's script then
// tells the machine to do: own disk, wait, or installer.
//
// # Steps
//
//  1. Firmware broadcasts. [Policy] answers dhcpd: it notes the machine as a
//     sighting and gives an address and the name of a loader, by [Decide].
//  2. The loader is iPXE, by TFTP (BIOS, UEFI) or HTTP (UEFI HTTP boot). It
//     asks DHCP again and is given the address of its script.
//  3. [Handler] writes the script, by [Decide] again, from the state at that
//     moment. A machine that waits asks again every few seconds, so it goes on
//     without a reboot once it is assigned and armed.
//  4. The installer is the image's own kernel and an initramfs made of the
//     agent and those of the kernel's modules that reach disks and networks
//     ([BuildBoot]).
//
// # Guarantees
//
// Decide is a pure table. Only a node that is Armed or Installing is ever
// given the installer, only to the address leased to its MAC, and each time
// with a nonce that no other boot has. An unknown machine outside collection
// hears nothing at all, so a doppel beside another DHCP server does not take
// machines from it; its firmware gives up and starts its own disk.
//
// BuildBoot's bytes depend on its inputs alone, and are cached by them. The
// kernel and its modules are the only bytes of an image that leave in the
// clear; firmware files of the image (lib/firmware) are not among them, so a
// network card that cannot start without one cannot install.
//
// # What it does not guarantee
//
// A MAC address is a claim. Whoever can forge one on the provisioning network
// can have the script of an armed node, and with it the nonce of that boot;
// what follows (one enrolment per boot, and an event when a second is tried)
// is the server's to judge. Plain PXE cannot promise more.
package pxe
