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
// vault. SealBlob and OpenBlob do for manifests what the vault does for chunks.
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
//     writers at the same time may both store a chunk; either is found, and
//     Unused tells when one of the packs is of no more use.
//   - The length of a compressed block tells something of its content to who
//     can choose a part of it and watch.
//
// # A pack, byte by byte
//
// All numbers are big-endian. A pack is
//
//	header    56 bytes
//	blocks    sealed, one right after the other
//	trailer   sealed
//	footer    24 bytes
//
// The header:
//
//	 0   8  magic "DOPPELPK"
//	 8   1  format version, 1
//	 9   1  audience: 1 cluster, 2 head
//	10   6  zero
//	16   8  fingerprint of the audience's key
//	24  32  salt, random
//
// The fingerprint is the first 8 bytes of HMAC-SHA256(audience key, "doppel
// key fingerprint v1"). Every pack has its own key: HKDF-SHA256(secret: the
// audience key, salt: the salt, info: "doppel pack v1"), 32 bytes. Every sealed
// part is AES-256-GCM under it: ciphertext, then the tag of 16 bytes. A salt of
// 256 random bits is never met twice, so nonces need to differ only within a
// pack. They are 4 zero bytes and a number of 8 bytes: of the block, from 0 on;
// for the trailer 2^64-1. The associated data is
//
//	 0   8  magic "DOPPELPK"
//	 8   1  format version
//	 9   1  audience
//	10      "block" and the block's number in 8 bytes, or "trailer"
//
// A block, opened, is its encoded bytes (Block.Data): with codec 0 the plain
// bytes of its chunks one after the other, with codec 1 those as Zstandard
// frames. The trailer, opened, is the table:
//
//	0   4  number of blocks
//	then for each block, in the order in which they lie:
//	0   8  offset in the pack
//	8   4  sealed length, the tag included
//	12  4  plain length, at most 16 MiB
//	16  1  codec: 0 raw, 1 zstd
//	17  4  number of chunks, 1 to 2^20
//	21     for each chunk: 32 bytes SHA-256, 4 bytes size, at least 1
//
// The footer:
//
//	 0   8  offset of the trailer
//	 8   8  sealed length of the trailer, the tag included, at most 128 MiB
//	16   8  magic "KPLEPPOD"
//
// Blocks begin at 56 and leave no room between them or before the trailer; the
// sizes of a block's chunks add up to its plain length; nothing follows the
// footer. A reader refuses a pack in which any of this is not so.
//
// # A sealed blob, byte by byte
//
// A header as above with the magic "DOPPELMF", then AES-256-GCM of one or more
// Zstandard frames. The key is HKDF-SHA256(audience key, salt, "doppel blob
// v1"); the nonce is 12 zero bytes, as the key seals nothing else; the
// associated data is magic, version and audience as above and the blob's kind
// ("manifest"). Decoded it is at most 1 GiB.
package store
