// Package dpkg tells which packages a Debian system has by the database of its
// dpkg, and in what two systems differ.
//
// # Words
//
// A stanza is what a file of the database says of one package: fields, one a
// line, and lines that go on with the field before them (deb822(5)). A name of a
// package may be installed for several architectures at once, each with a
// version of its own; a package is a name for one architecture.
//
// # Where a system has it
//
//   - var/lib/dpkg/status (Status) has a stanza for every package that dpkg has
//     ever heard of. Installed are those whose Status says so, whatever triggers
//     they wait for; removed ones may have left their configuration.
//   - var/lib/dpkg/updates/NNNN (Update) is what a dpkg that was running when the
//     tree was captured had not written to status yet: it counts in place of what
//     is there.
//   - var/lib/dpkg/status.d/NAME (Part) has the control file of one package. Images
//     that were made without dpkg, as distroless ones are, have no other. Without
//     a Status a package is installed.
//
// # What it guarantees
//
//   - Packages are those that dpkg-query -W has as installed; versions are
//     compared as dpkg --compare-versions does (deb-version(7)).
//   - Whatever a database is, it takes memory for what is kept of its packages:
//     64 MiB at most. What makes no sense is a *SyntaxError with its line.
package dpkg
