package snapshot

// Limits on what a hostile repository or archive can make this machine do. They are far above what people have.
const (
	// defaultMaxEntries bounds the entries of one restore; repeated references to one tree make it easy to ask for
	// billions with a few kilobytes.
	defaultMaxEntries = 10_000_000
	// maxDepth bounds how deep directories are nested; Linux programs can name 2,048 levels in one path.
	maxDepth = 2048
)

// maxPathBytes bounds a directory's path, which is kept per directory.
const maxPathBytes = 64 << 10
