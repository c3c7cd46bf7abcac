// Package web is the daemon's three doors, and the certificate authority that
// stands behind one of them.
//
// # The TLS door, for machines
//
// Machines serves /v1/enrol, /v1/orders, /v1/report, /v1/certificate and
// /v1/up with the words of package clone. Plans and keys leave by this door
// alone. A machine begins with nothing but the CA's certificate and the nonce
// of its boot. The first caller from the address of an armed (or installing)
// node that knows the nonce of the node's latest boot gets a boot certificate,
// once; whoever comes later is refused, and an event says so. With the boot
// certificate it gets its plan and keys, reports, and gets the certificate
// that its installed system keeps.
//
// Certificates are taken back by state, not by lists. A boot certificate is
// worth something while its node is armed or installing by its install, and no
// later boot of the node has enrolled. A
// node's own certificate is worth something while it is the last one that the
// node was given: assigning the node to another machine, or installing it
// again, ends the one before.
//
// A machine's clock may say 1970, and a head's may, too, after its battery has
// died. All certificates are valid from 2020-01-01 on, and this server never
// judges by an earlier time. A client judges the server's certificate by the
// CA alone, at a time within the CA's validity.
//
// # The plain door, for blobs and boot files
//
// Plain serves /store/ (sealed packs and manifests) and /boot/ (kernels,
// initramfs and scripts), and nothing else. Nothing secret is within its
// reach.
//
// # The Unix socket, for the command
//
// Admin serves the socket DIR/doppel.sock; Client is its other end. The socket
// is its owner's alone. Streams (events, sightings, nodes) are one JSON value
// a line.
//
// # Errors
//
// An error is {"error": "…", "hint": "…"} with a 4xx status when the caller
// can do something about it, and 5xx when not. Bodies are at most 1 MiB
// (64 MiB on the socket), and are refused when they hold an unknown field or
// anything after the value.
//
// # Not guaranteed
//
// During an install the nonce of the boot travels in the clear, as all of PXE
// does: an active attacker on the provisioning segment who takes a machine's
// address before the machine can enrol in its place. The machine then is
// refused, and says so on its screen and in the events.
package web
