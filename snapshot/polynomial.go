package snapshot

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/bits"
	"strconv"
)

// polynomial is one over GF(2), bit i being the coefficient of x^i. This package cuts files with another chunker; the
// polynomial is only kept in the config, because stock restic uses it and refuses a repository without a valid one.
type polynomial uint64

// polynomialDegree is the degree that restic's chunker needs.
const polynomialDegree = 53

func (p polynomial) degree() int { return bits.Len64(uint64(p)) - 1 }

// mod is the remainder of p divided by d, which must not be 0.
func (p polynomial) mod(d polynomial) polynomial {
	for degree := d.degree(); p.degree() >= degree; {
		p ^= d << (p.degree() - degree)
	}
	return p
}

// multiplyMod is p*q modulo d; p must be reduced already, and d's degree at most 62.
func (p polynomial) multiplyMod(q, d polynomial) polynomial {
	var product polynomial
	top := polynomial(1) << d.degree()
	for ; q != 0; q >>= 1 {
		if q&1 != 0 {
			product ^= p
		}
		p <<= 1
		if p&top != 0 {
			p ^= d
		}
	}
	return product
}

func (p polynomial) gcd(q polynomial) polynomial {
	for q != 0 {
		p, q = q, p.mod(q)
	}
	return p
}

// irreducible reports whether p has no divisor but 1 and itself, by Ben-Or's test: p is irreducible exactly when it has
// no factor in common with x^(2^i) - x for every i up to half its degree.
func (p polynomial) irreducible() bool {
	degree := p.degree()
	if degree < 1 || degree > 62 {
		return false
	}
	const x = polynomial(2)
	power := x.mod(p)
	for range degree / 2 {
		power = power.multiplyMod(power, p)
		if p.gcd((power ^ x).mod(p)) != 1 {
			return false
		}
	}
	return true
}

// randomPolynomial finds an irreducible polynomial of degree 53. About one in 26 candidates is one.
func randomPolynomial() (polynomial, error) {
	var random [8]byte
	for range 100_000 {
		if _, err := rand.Read(random[:]); err != nil {
			return 0, fmt.Errorf("making a polynomial: %w", err)
		}
		p := polynomial(binary.LittleEndian.Uint64(random[:]))
		p &= 1<<(polynomialDegree+1) - 1
		p |= 1<<polynomialDegree | 1
		if p.irreducible() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("making a polynomial: no irreducible one found: the source of random numbers is broken")
}

// MarshalJSON writes lower-case hexadecimal digits in a string.
func (p polynomial) MarshalJSON() ([]byte, error) {
	return json.Marshal(strconv.FormatUint(uint64(p), 16))
}

// UnmarshalJSON reads hexadecimal digits in a string.
func (p *polynomial) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return err
	}
	value, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return fmt.Errorf("a polynomial is no hexadecimal number: %w", ErrDamaged)
	}
	*p = polynomial(value)
	return nil
}
