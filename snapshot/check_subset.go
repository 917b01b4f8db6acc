package snapshot

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"holdfast/storage"
)

// Subset says which packs a check reads. The zero value says none; ParseSubset makes others.
type Subset struct {
	text            string
	bucket, buckets uint64  // n/t
	percent         float64 // x%
	bytes           int64   // a size
}

// maxBuckets is how many groups a pack's first byte can tell apart.
const maxBuckets = 256

// ParseSubset reads what restic check --read-data-subset takes: "n/t", the n-th of t groups of packs, t at most 256, so that t
// checks read all; "x%", so many of the packs at random, at least one; or a size such as 500M or 500MiB, as many at random as
// have that size on average. Anything else is storage.ErrInvalid.
func ParseSubset(text string) (Subset, error) {
	s := Subset{text: text}
	var err error
	if n, t, ok := strings.Cut(text, "/"); ok {
		if s.bucket, err = strconv.ParseUint(n, 10, 32); err == nil {
			s.buckets, err = strconv.ParseUint(t, 10, 32)
		}
		if err != nil || s.bucket < 1 || s.bucket > s.buckets || s.buckets > maxBuckets {
			return Subset{}, fmt.Errorf("%q is no n/t with 1 ≤ n ≤ t ≤ %d: %w", text, maxBuckets, storage.ErrInvalid)
		}
		return s, nil
	}
	if share, ok := strings.CutSuffix(text, "%"); ok {
		s.percent, err = strconv.ParseFloat(share, 64)
		if err != nil || !(s.percent > 0 && s.percent <= 100) {
			return Subset{}, fmt.Errorf("%q is no share above 0%% and at most 100%%: %w", text, storage.ErrInvalid)
		}
		return s, nil
	}
	size := text
	if short, ok := strings.CutSuffix(text, "iB"); ok && short != "" && strings.ContainsRune("KMGT", rune(short[len(short)-1])) {
		size = short
	}
	if s.bytes, err = ParseSize(size); err != nil || s.bytes == 0 {
		return Subset{}, fmt.Errorf("%q is neither n/t, nor x%%, nor a size above 0 such as 500M or 500MiB: %w", text, storage.ErrInvalid)
	}
	return s, nil
}

// String is what ParseSubset was given.
func (s Subset) String() string { return s.text }

// isZero reports whether the subset is that of no pack.
func (s Subset) isZero() bool { return s.text == "" }

// choose selects from packs, which are sorted, with the rules of restic 0.14 to 0.19. random is a random permutation.
func (s Subset) choose(packs []blobID, sizes map[blobID]int64, random func(n int) []int) []blobID {
	if s.buckets > 0 {
		return slices.DeleteFunc(slices.Clone(packs), func(id blobID) bool { return uint64(id[0])%s.buckets != s.bucket-1 })
	}
	percent := s.percent
	if s.bytes > 0 {
		var total int64
		for _, id := range packs {
			total += sizes[id]
		}
		percent = float64(min(s.bytes, total)) / float64(max(total, 1)) * 100
	}
	if len(packs) == 0 {
		return nil
	}
	chosen := make([]blobID, max(int(float64(len(packs))*(percent/100)), 1))
	for i, at := range random(len(packs))[:len(chosen)] {
		chosen[i] = packs[at]
	}
	slices.SortFunc(chosen, blobID.compare)
	return chosen
}

// toRead are the packs that a check reads.
func (o *CheckOptions) toRead(packs []blobID, sizes map[blobID]int64) []blobID {
	switch {
	case o.ReadData:
		return packs
	case o.Subset.isZero():
		return nil
	default:
		return o.Subset.choose(packs, sizes, rand.Perm)
	}
}
