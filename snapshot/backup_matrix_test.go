package snapshot

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
)

// The fault matrix of backups (A2, A4, A8, A9; invariants 1, 2 and 10): each thing that a backup asks of a store, failing
// there in each way, on as many of three stores as the policy bears, and on one more. The stores have circuits and the mirror
// has its defaults, as in a node. The clock is the bubble's own: hours cost nothing, times are exact, and a goroutine that
// stays behind fails the test.

// matrixOp is something that a backup asks of a store.
type matrixOp struct {
	name  string
	op    faulty.Op
	kind  string // of the object that is stored; "" for any
	first bool   // only a repository's first backup does it
	// late: the stores at fault are new: the backup copies to them what the others have of the earlier snapshot.
	late bool
}

var matrixOps = []matrixOp{
	{name: "put config", op: faulty.Put, kind: "config", first: true},
	{name: "put key", op: faulty.Put, kind: "key", first: true},
	{name: "put tree pack", op: faulty.Put, kind: "tree pack"},
	{name: "put data pack", op: faulty.Put, kind: "data pack"},
	{name: "put index", op: faulty.Put, kind: "index"},
	{name: "put snapshot", op: faulty.Put, kind: "snapshot"},
	{name: "put lock", op: faulty.Put, kind: "lock"},
	{name: "copy what is owed", op: faulty.Put, kind: "owed", late: true},
	{name: "put anything", op: faulty.Put}, // a store that is read-only, or full
	{name: "get", op: faulty.Get},
	{name: "stat", op: faulty.Stat},
	{name: "list", op: faulty.List},
	{name: "delete", op: faulty.Delete},
	{name: "everything", op: faulty.Any},
}

// matrixWay is how it goes wrong.
type matrixWay struct {
	name string
	rule faulty.Rule
	// once: it passes when the same is asked again.
	once bool
	// cause is in the error of a backup that needs the store.
	cause error
}

const (
	slowly     = 20 * time.Second // longer than anybody waits who need not
	retryAfter = 3 * time.Second  // as long as the real stores let a client wait that is throttled
)

var errThrottled = errors.New("429 Too Many Requests")

var matrixWays = []matrixWay{
	{name: "500", rule: faulty.Rule{Kind: faulty.Error}, cause: faulty.ErrInjected},
	{name: "500 once", rule: faulty.Rule{Kind: faulty.Error, Times: 1}, once: true},
	{name: "403", rule: faulty.Rule{Kind: faulty.Error, Err: storage.ErrPermission}, cause: storage.ErrPermission},
	{name: "no bucket", rule: faulty.Rule{Kind: faulty.Error, Err: storage.ErrBucketNotFound}, cause: storage.ErrBucketNotFound},
	{name: "full", rule: faulty.Rule{Kind: faulty.Error, Err: storage.ErrNoSpace}, cause: storage.ErrNoSpace},
	{name: "wrong checksum", rule: faulty.Rule{Kind: faulty.Error, Err: storage.ErrIntegrity}, cause: storage.ErrIntegrity},
	{name: "throttled", rule: faulty.Rule{Kind: faulty.Error, Err: errThrottled, Delay: retryAfter}, cause: errThrottled},
	{name: "throttled once", rule: faulty.Rule{Kind: faulty.Error, Err: errThrottled, Delay: retryAfter, Times: 1}, once: true},
	{name: "hang", rule: faulty.Rule{Kind: faulty.Hang}, cause: storage.ErrStalled},
	{name: "hang once", rule: faulty.Rule{Kind: faulty.Hang, Times: 1}, cause: storage.ErrStalled},
	{name: "slow", rule: faulty.Rule{Kind: faulty.Slow, Delay: slowly}},
	{name: "late", rule: faulty.Rule{Kind: faulty.Late}}, // done slowly after the beginning, whatever has become of the caller
	{name: "truncated", rule: faulty.Rule{Kind: faulty.Truncate}, cause: io.ErrUnexpectedEOF},
	{name: "wrong bytes", rule: faulty.Rule{Kind: faulty.WrongBytes}, cause: ErrDamaged},
	{name: "wrong length", rule: faulty.Rule{Kind: faulty.WrongLength}, cause: ErrDamaged},
	{name: "success without storing", rule: faulty.Rule{Kind: faulty.NotStored}},
	{name: "lost answer", rule: faulty.Rule{Kind: faulty.LostAnswer}, cause: faulty.ErrInjected},
	{name: "lost answer once", rule: faulty.Rule{Kind: faulty.LostAnswer, Times: 1}, once: true},
	{name: "reset", rule: faulty.Rule{Kind: faulty.Reset}, cause: syscall.ECONNRESET},
}

// matrixPlace is a policy, and which of three stores are at fault.
type matrixPlace struct {
	policy storage.Policy
	faulty []int
}

func (p matrixPlace) bears() bool {
	required := p.policy.Required
	if required == 0 {
		required = 3
	}
	return 3-len(p.faulty) >= required
}

func (p matrixPlace) String() string {
	return fmt.Sprintf("%s, %v", p.policy, p.faulty)
}

var matrixPlaces = []matrixPlace{
	{storage.PolicyAll, []int{0}},
	{storage.PolicyAll, []int{2}},
	{storage.Policy{Required: 2}, []int{0}},
	{storage.Policy{Required: 2}, []int{1, 2}},
	{storage.PolicyAny, []int{0, 1}},
	{storage.PolicyAny, []int{0, 1, 2}},
}

// TestMatrixIsComplete: a method of a store, or a way to fail, that is new is in the matrix, or this fails.
func TestMatrixIsComplete(t *testing.T) {
	ops := map[string]bool{}
	for _, op := range matrixOps {
		ops[string(op.op)] = true
	}
	provider := reflect.TypeFor[storage.Provider]()
	for i := range provider.NumMethod() {
		if name := provider.Method(i).Name; name != "URL" && name != "Close" {
			require.True(t, ops[strings.ToLower(name)], "%s is in no row of the matrix", name)
		}
	}
	for _, kind := range faulty.Kinds() {
		require.True(t, slices.ContainsFunc(matrixWays, func(w matrixWay) bool { return w.rule.Kind == kind }), "the fault of kind %d is in no row", kind)
	}
	// Every object of a repository is of a kind that is in the matrix.
	earlier := matrixScene(t)
	kinds := map[string]bool{}
	for _, op := range matrixOps {
		kinds[op.kind] = true
	}
	for _, key := range append(earlier.memories[0].Keys(), earlier.locks...) {
		kind := objectKind(key)
		if _, pack := parsePackKey(key); pack {
			kind = "data pack"
		}
		require.NotEmpty(t, kind, key)
		require.True(t, kinds[kind], "%s is in no row of the matrix", key)
	}
	require.NotEmpty(t, earlier.locks)
}

// matrixEffect is what a fault does to the stores that have it.
type matrixEffect int

const (
	// harmless: each store gets everything, if not at once.
	harmless matrixEffect = iota
	// delayed: a store that is waited for gets everything; one that nobody needs is left behind, and owed it, or not.
	delayed
	// misses: the stores do not get everything, and say so.
	misses
	// unread: what is there already cannot be read, which matters when no other store has it.
	unread
	// lies: the stores say that they hold, or list, something else than they do; only a look finds out.
	lies
)

func (c *matrixCell) effect() matrixEffect {
	op, kind, all := c.op, c.way.rule.Kind, len(c.place.faulty) == 3
	lie := slices.Contains([]faulty.Kind{faulty.Truncate, faulty.WrongBytes, faulty.WrongLength, faulty.NotStored}, kind)
	hangsOnce := kind == faulty.Hang && c.way.rule.Times == 1
	switch {
	case op.op == faulty.Stat, op.op == faulty.Delete: // the one is not asked; the other is of the lock alone
		return harmless
	case op.late && all: // nobody has anything that could be copied
		return harmless
	case kind == faulty.NotStored && (op.op == faulty.Get || op.op == faulty.List):
		return harmless
	case lie && op.kind == "lock" && !(all && kind == faulty.NotStored): // who looks for locks looks everywhere
		return harmless
	case hangsOnce && (op.op == faulty.Put || all && op.op != faulty.Get): // nothing is asked twice that took so long
		return misses
	case hangsOnce, kind == faulty.Slow, kind == faulty.Late, c.way.once && c.way.rule.Delay > 0:
		return delayed
	case c.way.once:
		return harmless
	case op.op == faulty.Get:
		return unread
	case lie:
		return lies
	}
	return misses
}

// sensible is false for what no store does: only bytes have a checksum, only a write is done after its sender has left.
func sensible(op matrixOp, way matrixWay) bool {
	if way.rule.Kind == faulty.Late {
		return op.op == faulty.Put
	}
	return !errors.Is(way.cause, storage.ErrIntegrity) || op.op == faulty.Put || op.op == faulty.Get
}

// judge compares what a backup said, and how long it took, with what the policy promises.
func (c *matrixCell) judge(said claim, took time.Duration) {
	t := c.t
	var atFault []string
	for _, i := range c.place.faulty {
		atFault = append(atFault, c.sorters[i].URL())
	}
	slices.Sort(atFault)
	effect, all := c.effect(), len(c.place.faulty) == 3
	succeeds := c.place.bears() || effect == harmless || effect == delayed || effect == unread && !all
	switch {
	case effect == lies && (all || !c.place.bears()):
		// Nobody may find out before the look. That the look does, proveClaim says.
	case !succeeds:
		require.Error(t, said.err)
		require.ErrorIs(t, said.err, c.way.cause)
		require.Equal(t, storage.Retryable(c.way.cause), storage.Retryable(said.err), "%v", said.err)
		for _, url := range atFault {
			require.ErrorContains(t, said.err, url)
		}
	default:
		require.NoError(t, said.err)
		if effect == misses {
			require.Equal(t, atFault, said.result.Owed, "what is owed, and nothing else")
		}
		for _, url := range said.result.Owed {
			require.Contains(t, atFault, url, "it did nothing wrong")
		}
		if effect == harmless {
			require.Empty(t, said.result.Owed)
		}
		for i, sorter := range c.sorters {
			if !slices.Contains(c.place.faulty, i) {
				require.True(t, said.whole(sorter.URL()), "%v", said.outcome[sorter.URL()])
			}
		}
	}
	if effect == lies && c.fired() > 0 {
		for _, url := range atFault {
			require.False(t, said.whole(url), "%s is said to hold what it does not", url)
		}
	}
	require.LessOrEqual(t, took, c.limit(said.err == nil), "%v", said.err)
}

// limit is how long a backup may take with a fault; without, it takes no time at all.
func (c *matrixCell) limit(made bool) time.Duration {
	const (
		lag     = 5 * time.Second  // LagTimeout, and RetryFor
		stall   = 30 * time.Second // StallTimeout
		removal = lockRemoval
		calls   = 9 // that are made one after another before a store's failing shows, at most
	)
	kind, cause := c.way.rule.Kind, c.way.cause
	switch {
	case cause != nil && !storage.Retryable(cause), kind == faulty.WrongBytes && made, kind == faulty.NotStored:
		return 0 // who refuses, or lies, costs no wait
	case kind == faulty.Late:
		return slowly // a provider that does not end with its context is waited for
	case made && c.place.bears() && (c.op.op == faulty.List || kind == faulty.WrongLength || kind == faulty.LostAnswer):
		return 5 * lag // it answers to something else between the listings, so that each is tried
	case made && c.place.bears():
		return 2 * lag // the key and the config, or what is new and what was owed
	case made && kind != faulty.Slow:
		return max(removal, stall+2*lag) // once for what is needed
	case kind == faulty.Hang, kind == faulty.Slow:
		return 2 * calls * stall
	default:
		return calls * 2 * lag
	}
}
