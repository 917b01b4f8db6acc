package snapshot

// GCPercent is what debug.SetGCPercent should be told in a process that does nothing else than this package's work. Most
// of what a backup holds are buffers that are used again, so that Go's default lets it take twice the memory it needs,
// and collecting more often costs next to nothing. The package itself changes nothing in the process that it is part of.
const GCPercent = 25
