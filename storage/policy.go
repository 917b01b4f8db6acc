package storage

import (
	"fmt"
	"strconv"
	"strings"
)

// Policy says how many providers must hold an object before a write is acknowledged.
type Policy struct {
	// Required is the number of providers that must hold an object; 0, and what is no number of providers, means all
	// of them.
	Required int
}

// The policies with names.
var (
	PolicyAll = Policy{Required: 0}
	PolicyAny = Policy{Required: 1}
)

// ParsePolicy reads "all", "any" or "quorum N" (N from 1).
func ParsePolicy(text string) (Policy, error) {
	switch fields := strings.Fields(text); {
	case len(fields) == 1 && fields[0] == "all":
		return PolicyAll, nil
	case len(fields) == 1 && fields[0] == "any":
		return PolicyAny, nil
	case len(fields) == 2 && fields[0] == "quorum":
		if n, err := strconv.Atoi(fields[1]); err == nil && n >= 1 {
			return Policy{Required: n}, nil
		}
	}
	return Policy{}, fmt.Errorf(`policy %q: want "all", "any" or "quorum N" with N from 1: %w`, text, ErrInvalid)
}

func (p Policy) String() string {
	switch {
	case p.Required <= 0:
		return "all"
	case p.Required == 1:
		return "any"
	default:
		return "quorum " + strconv.Itoa(p.Required)
	}
}

// Count is the number of providers, out of n, that the policy requires.
func (p Policy) Count(n int) int {
	if p.Required <= 0 || p.Required > n {
		return n
	}
	return p.Required
}
