package snapshot

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/scrypt"
)

// TestScryptIsThatOfGo: whatever the cost and the number of lanes, the key is the one that golang.org/x/crypto derives.
func TestScryptIsThatOfGo(t *testing.T) {
	for _, cost := range []KDFParameters{
		{N: 2, R: 1, P: 1}, {N: 4, R: 1, P: 2}, {N: 16, R: 2, P: 3}, {N: 1024, R: 8, P: 16}, {N: 64, R: 3, P: 7}, {N: 1 << 14, R: 8, P: 5},
		{N: 1 << 17, R: 5, P: 1},
	} {
		for _, password := range []string{"", "correct horse", "a password that is longer than a block of the hash, which HMAC then hashes first"} {
			salt := fmt.Appendf(nil, "salt of %s", password)
			want, err := scrypt.Key([]byte(password), salt, cost.N, cost.R, cost.P, 64)
			require.NoError(t, err)
			got, err := scryptKey([]byte(password), salt, cost.N, cost.R, cost.P, 64)
			require.NoError(t, err)
			require.Equal(t, want, got, "%+v", cost)
			if cost.N*cost.R > 1<<16 {
				break
			}
		}
	}
}

func BenchmarkScrypt(b *testing.B) {
	cost := KDFParameters{}.applyDefaults()
	salt := make([]byte, saltSize)
	for name, derive := range map[string]func(password, salt []byte, n, r, p, size int) ([]byte, error){"holdfast": scryptKey, "x-crypto": scrypt.Key} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, err := derive(testPassword, salt, cost.N, cost.R, cost.P, 64)
				require.NoError(b, err)
			}
		})
	}
}
