// Package store keeps the bytes of images: chunks, compressed together in
// blocks, sealed for an audience, in packs; and sealed manifests.
//
// # Words
//
// A chunk is a piece of a file, of at least one byte, named by the SHA-256 of
// its plain bytes. A block is several MiB of neighbouring chunks, compressed
// together; MaxBlock bounds it. A pack is an immutable file of blocks of one
// audience, about 32 MiB long. A blob is a pack or a sealed manifest: an
// immutable file named by the SHA-256 of its bytes as they are stored. An
// audience is who may read; it has one key. A Ref is a chunk's name together
// with the audience it is stored for: the same bytes may be there for each.
//
// # Layers
//
// A Store keeps blobs and knows nothing of keys: Dir in a directory, Memory,
// and HTTP, which reads what Handler serves. All pass one conformance suite. A
// Vault is a Store opened with Keys: it reads the tables of the packs and gives
// chunks by Ref, one (Chunk) or very many (Stream). A Writer adds blocks to a
// vault. Sealer and Opener do for manifests what the vault does for chunks, a
// segment at a time. Salvage reads what is whole of a damaged pack.
//
// # Steps of writing
//
// EncodeBlock compresses chunks, wherever they were read. Writer.Add decodes
// the block and holds each chunk against its name, seals the block and appends
// it to the open pack of its audience, in a temporary file beside its place. A
// pack that is full, or that Commit closes, gets its table, is synced, renamed
// to its digest, the directory synced, and only then are its chunks in the
// vault. Temporary files are locked (flock) by their process, so that those of
// a process that died are known and removed when a store is opened.
//
// Whoever adds holds Dir.LockShared from before OpenVault until a manifest
// names what was written; whoever removes holds Dir.LockExclusive. Neither
// Vault nor Writer takes the lock by itself.
//
// # Guarantees
//
//   - A blob that has its name is whole: kill -9, power loss or a full disk at
//     any instant leave all earlier blobs as they were, and none that is cut.
//   - Bytes that come out were checked against the chunk's name on the way.
//     Anything else is a *CorruptError that names the chunk; a chunk or blob
//     that is not there is a *MissingError.
//   - Without an audience's key nothing of a pack can be told but its length,
//     the lengths and rhythm of writing it, its audience and the fingerprint of
//     its key. Chunk names, sizes and numbers are sealed. So blobs may travel
//     by plain HTTP and lie in any cache.
//   - Every length and count that is read is held against a bound before
//     memory is taken for it. Stream needs memory for one block a worker,
//     whatever the size of packs.
//   - A key is never printed: not by fmt, slog or encoding/json.
//
// # What it does not guarantee
//
//   - A store is not proof against its owner: who can write to it can remove
//     blobs, or bring back old ones. Which blobs there should be is what names
//     and manifests say.
//   - Who holds an audience's key can make packs for it. There are no
//     signatures.
//   - Equal chunks are stored once only within what a vault has opened. Two
//     writers at the same time may both store a chunk, and either is found.
//   - The length of a compressed block tells something of its content to who
//     can choose a part of it and watch.
//
// # Byte by byte
//
// FORMAT.md of package imaging describes packs and sealed sections byte by byte,
// with the reasons.
package store
