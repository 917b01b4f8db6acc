package workspace_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

func version(token, sequence uint64, digit string) *workspace.Commit {
	return &workspace.Commit{Token: token, Sequence: sequence, Snapshot: strings.Repeat(digit, 64), Time: time.Unix(1000, 0)}
}

func answer(provider string, head *workspace.Commit) workspace.ProviderHead {
	a := workspace.ProviderHead{Provider: provider, Head: head}
	if head != nil {
		a.Token = head.Token
	}
	return a
}

func based(provider string, token uint64, digit string) workspace.ProviderHead {
	return workspace.ProviderHead{Provider: provider, Token: token, Base: strings.Repeat(digit, 64)}
}

func unlisted(provider string) workspace.ProviderHead {
	return workspace.ProviderHead{Provider: provider, Error: "i/o timeout"}
}

// invariant 3: by token, then by sequence, never by time.
func TestNewer(t *testing.T) {
	late := version(1, 2, "a")
	late.Time = time.Unix(9000, 0)
	require.True(t, version(2, 1, "b").Newer(late))
	require.False(t, late.Newer(version(2, 1, "b")))
	require.True(t, version(1, 3, "b").Newer(late))
	require.False(t, late.Newer(late))
	require.True(t, late.Newer(nil))
	require.False(t, (*workspace.Commit)(nil).Newer(nil))
	require.False(t, (*workspace.Commit)(nil).Newer(late))
}

// invariant 4: an older answer, or a provider that cannot be listed, is said and needs the person's word; going back is
// never silent.
func TestDecideHead(t *testing.T) {
	now := time.Unix(1060, 0)
	one, two := version(1, 1, "1"), version(2, 1, "2")
	for name, test := range map[string]struct {
		known   *workspace.Commit
		answers []workspace.ProviderHead
		accept  string
		head    string // the snapshot that is chosen
		refused string // what the refusal says; empty: none
		noted   string
	}{
		"nothing anywhere":               {answers: []workspace.ProviderHead{answer("a", nil), answer("b", nil)}},
		"all agree":                      {known: one, answers: []workspace.ProviderHead{answer("a", one), answer("b", one)}, head: one.Snapshot},
		"all have a newer one":           {known: one, answers: []workspace.ProviderHead{answer("a", two), answer("b", two)}, head: two.Snapshot, noted: "newer version"},
		"known is gone from the state":   {answers: []workspace.ProviderHead{answer("a", one), answer("b", one)}, head: one.Snapshot, noted: "newer version"},
		"one is older":                   {known: two, answers: []workspace.ProviderHead{answer("a", two), answer("b", one)}, head: two.Snapshot, refused: "b has the older version 11111111"},
		"only the second has the newest": {known: one, answers: []workspace.ProviderHead{answer("a", one), answer("b", two)}, head: two.Snapshot, refused: "a has the older version", noted: "newer version"},
		"one has nothing":                {known: one, answers: []workspace.ProviderHead{answer("a", one), answer("b", nil)}, head: one.Snapshot, refused: "b has no version at all"},
		"one cannot be listed":           {known: one, answers: []workspace.ProviderHead{answer("a", one), unlisted("b")}, head: one.Snapshot, refused: "b cannot be listed"},
		"all are older":                  {known: two, answers: []workspace.ProviderHead{answer("a", one), answer("b", one)}, head: two.Snapshot, refused: "older version"},
		"none can be listed":             {known: one, answers: []workspace.ProviderHead{unlisted("a"), unlisted("b")}, head: one.Snapshot, refused: "cannot be listed"},
		"nothing known, one unlisted":    {answers: []workspace.ProviderHead{answer("a", nil), unlisted("b")}, refused: "is not known"},
		"nothing known, nothing listed":  {accept: one.Snapshot, answers: []workspace.ProviderHead{unlisted("a")}, refused: "is not known"},
		"accepted":                       {known: two, accept: two.Snapshot, answers: []workspace.ProviderHead{answer("a", two), unlisted("b")}, head: two.Snapshot, noted: "cannot be listed"},
		"another one accepted":           {known: two, accept: one.Snapshot, answers: []workspace.ProviderHead{answer("a", two), answer("b", one)}, head: two.Snapshot, refused: "older version"},
		"the base of a newer instance":   {known: two, answers: []workspace.ProviderHead{based("a", 3, "1"), based("b", 3, "1")}, head: one.Snapshot, noted: "newer version"},
		"the base is what is known":      {known: version(3, 0, "1"), answers: []workspace.ProviderHead{based("a", 3, "1"), based("b", 3, "1")}, head: one.Snapshot},
		"a record on one store only":     {known: two, answers: []workspace.ProviderHead{based("a", 3, "2"), answer("b", two)}, head: two.Snapshot},
		"an instance without a version":  {answers: []workspace.ProviderHead{{Provider: "a", Token: 1}, {Provider: "b", Token: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			decision := workspace.DecideHead(test.known, workspace.ReadHeadResult{Providers: test.answers}, test.accept, now)
			if test.head == "" {
				require.Nil(t, decision.Head)
			} else {
				require.NotNil(t, decision.Head)
				require.Equal(t, test.head, decision.Head.Snapshot)
			}
			if test.refused == "" {
				require.Empty(t, decision.Refusal)
			} else {
				require.Contains(t, decision.Refusal, test.refused)
				require.Equal(t, test.head, decision.AcceptVersion, "the person is told what to accept")
			}
			if test.noted == "" {
				require.Empty(t, decision.Notes)
			} else {
				require.Contains(t, strings.Join(decision.Notes, "\n"), test.noted)
			}
		})
	}
}

// What is decided never goes behind what is known, whatever the stores answer.
func TestDecideHeadNeverGoesBack(t *testing.T) {
	digits := []string{"1", "2", "3"}
	var answers []workspace.ProviderHead
	for token := uint64(1); token <= 3; token++ {
		answers = append(answers, answer("a", version(token, 1, digits[token-1])), based("a", token, digits[token-1]))
	}
	answers = append(answers, answer("a", nil), unlisted("a"))
	for _, a := range answers {
		for _, b := range answers {
			for token := uint64(1); token <= 3; token++ {
				known := version(token, 1, digits[token-1])
				decision := workspace.DecideHead(known, workspace.ReadHeadResult{Providers: []workspace.ProviderHead{a, b}}, "", time.Unix(2000, 0))
				require.False(t, known.Newer(decision.Head), "%+v %+v", a, b)
				agree := func(p workspace.ProviderHead) bool {
					return p.Error == "" && (p.Head != nil && p.Head.Snapshot == decision.Head.Snapshot || p.Base == decision.Head.Snapshot)
				}
				require.Equal(t, !agree(a) || !agree(b), decision.Refusal != "", "%+v %+v: %s", a, b, decision.Refusal)
			}
		}
	}
}
