package snapshot

// Limits on what a repository can make this process allocate. Who holds the key may be hostile (a repository handed
// over by someone else), and damage looks the same; so every size that is read is compared with one of these first.
const (
	// maxBlobSize bounds the plaintext of a data blob. restic's chunks have at most 8 MiB.
	maxBlobSize = 64 << 20
	// maxTreeSize bounds the JSON of one directory: about 700,000 entries.
	maxTreeSize = 256 << 20
	// maxTreeMemory, maxIndexMemory and maxSnapshotMemory bound what the JSON of a directory, an index file and a snapshot
	// file becomes when it is decoded: 1.3 million entries, 5.6 million blobs, 1.4 million omissions.
	maxTreeMemory     = 384 << 20
	maxIndexMemory    = 256 << 20
	maxSnapshotMemory = 64 << 20
	// maxJSONDepth is how deep encoding/json goes.
	maxJSONDepth = 10_000
	// maxLockSize bounds a lock file's JSON, which has some 300 bytes. Locks are read whole, all of them, before any is believed.
	maxLockSize = 64 << 10
	// maxHeaderSize bounds a pack's sealed header; restic has the same limit.
	maxHeaderSize = 16 << 20
	// maxPackSize bounds a pack file, because offsets in it have 32 bits.
	maxPackSize = 1<<32 - 1
	// maxUnpackedSize bounds an index, snapshot or lock file, stored and decompressed.
	maxUnpackedSize = 256 << 20
	// maxKeyFileSize and maxConfigSize bound files that are read before anything is authenticated.
	maxKeyFileSize = 64 << 10
	maxConfigSize  = 64 << 10
	// maxKeys bounds how many keys are tried with a password, each of which may cost a second. restic tries as many.
	maxKeys = 20
	// maxIndexEntries bounds the index in memory, to about 3.5 GB, on machines that have that (Options.IndexMemory).
	maxIndexEntries = 48 << 20
	// maxSnapshots bounds how many snapshot files are read to answer one question.
	maxSnapshots = 1 << 20
	// maxNameSize bounds one name in a tree, and maxLinkTargetSize a link's target (Linux: 255 and 4095).
	maxNameSize       = 4096
	maxLinkTargetSize = 64 << 10
)
