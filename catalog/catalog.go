// Package catalog keeps what must outlive Temporal beside the backups: who may write a workspace (instance records),
// what was written (commits), where it ran (placements), and its wrapped password.
//
// Everything that decides something is a create-only object: it is written once under a key that holds the token, and
// never changed. So a writer that lost its right can at worst add an object that nobody follows, and a lost answer is
// recognised by comparing (invariants 3 and 8).
//
//	catalog/control.json                                    the control side's keys, wrapped by the master key
//	catalog/names/<name>/<id>.json                          which ids a name has had
//	catalog/workspaces/<id>/password.json                   the repository's password, wrapped by the master key
//	catalog/workspaces/<id>/instances/<token>.json          instance records
//	catalog/workspaces/<id>/commits/<token>/<sequence>.json commits
//	catalog/workspaces/<id>/deleted.json                    that it was deleted
//	catalog/nodes/<node>/<id>.<token>                       placements
//
// Tokens and sequences are written with twenty digits, so that the order of keys is the order of numbers.
package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"time"

	"holdfast/storage"
	"holdfast/workspace"
)

// Errors that callers tell apart.
var (
	// ErrStale: a newer instance of the workspace has been recorded (invariant 7).
	ErrStale = errors.New("a newer instance of this workspace has been recorded")
	// ErrConflict: a create-only object is there with other content.
	ErrConflict = errors.New("the catalog holds another object under this key")
	// ErrDamaged: an object cannot be decoded.
	ErrDamaged = errors.New("a catalog object is damaged")
	// ErrTooFew: fewer providers answered than the policy requires, and waiting may mend that.
	ErrTooFew = errors.New("fewer stores answered than the policy requires")
)

// Catalog reads and writes the catalog on all providers of a policy. It is safe for concurrent use.
type Catalog struct {
	providers    []storage.Provider
	policy       storage.Policy
	answerWithin time.Duration
}

// New makes a catalog over the providers, in the policy's order. They stay open when it is no longer used.
func New(providers []storage.Provider, policy storage.Policy) *Catalog {
	return &Catalog{providers: providers, policy: policy, answerWithin: answerWithin}
}

// Providers are the stores of the policy, in order.
func (c *Catalog) Providers() []storage.Provider { return c.providers }

// Policy says how many of them must hold an object.
func (c *Catalog) Policy() storage.Policy { return c.policy }

const controlKey = "catalog/control.json"

func nameKey(name, id string) string { return "catalog/names/" + name + "/" + id + ".json" }

func workspacePrefix(id string) string { return "catalog/workspaces/" + id + "/" }

func digits(n uint64) string { return fmt.Sprintf("%020d", n) }

func instanceKey(id string, token uint64) string {
	return workspacePrefix(id) + "instances/" + digits(token) + ".json"
}

func commitKey(id string, token, sequence uint64) string {
	return workspacePrefix(id) + "commits/" + digits(token) + "/" + digits(sequence) + ".json"
}

func placementKey(node, id string, token uint64) string {
	return "catalog/nodes/" + node + "/" + workspace.InstanceName(id, token)
}

func numberIn(key string) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimSuffix(path.Base(key), ".json"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("catalog key %s holds no number: %w", key, ErrDamaged)
	}
	return n, nil
}

// create writes a create-only object to every provider and returns nil when the policy's number hold it. An equal
// object that is there already counts as written; a different one anywhere is ErrConflict, whatever the others say.
func (c *Catalog) create(ctx context.Context, key string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encoding catalog object %s: %w", key, err)
	}
	held := 0
	causes := map[string]error{}
	for _, answer := range onAll(ctx, c, func(ctx context.Context, provider storage.Provider) (struct{}, error) {
		_, err := provider.Put(ctx, key, data, storage.PutOptions{CreateOnly: true})
		if errors.Is(err, storage.ErrExists) {
			err = c.compare(ctx, provider, key, data)
		}
		return struct{}{}, err
	}) {
		switch {
		case answer.Err == nil:
			held++
		case errors.Is(answer.Err, ErrConflict):
			return answer.Err
		default:
			causes[answer.Provider.URL()] = answer.Err
		}
	}
	if required := c.required(); held < required {
		return fmt.Errorf("%d of %d stores hold the catalog object: %w", held, required, unheard(ctx, "writing", key, causes))
	}
	return nil
}

func (c *Catalog) compare(ctx context.Context, provider storage.Provider, key string, data []byte) error {
	there, err := read(ctx, provider, key)
	if err != nil {
		return err
	}
	if !bytes.Equal(there, data) {
		return fmt.Errorf("%s on %s: %w", key, provider.URL(), ErrConflict)
	}
	return nil
}

// answerWithin bounds one question to one provider: one that takes the connection and then says nothing must not keep
// the others' answer from counting. Recording an instance asks four times within an activity's minute.
const answerWithin = 10 * time.Second

// required is how many providers the policy requires.
func (c *Catalog) required() int { return c.policy.Count(len(c.providers)) }

// onAll asks every provider at once, with answers in their order. When the policy's number have answered, those that
// are away get a moment more and then count as unheard. They are asked all the same: these questions decide something,
// and are few, so that one which is just back should be heard, and get what it is to hold.
func onAll[T any](ctx context.Context, c *Catalog, ask func(context.Context, storage.Provider) (T, error)) []storage.Answer[T] {
	return storage.Ask(ctx, storage.Question{Providers: c.providers, Enough: c.required(), Within: c.answerWithin, Everybody: true},
		func(ctx context.Context, provider storage.Provider, _ func()) (T, error) { return ask(ctx, provider) }, nil)
}

// maxObject bounds what is read of a catalog object: they are small, and a store may be hostile.
const maxObject = 4 << 20

func read(ctx context.Context, provider storage.Provider, key string) ([]byte, error) {
	object, err := provider.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if object.Size > maxObject {
		return nil, fmt.Errorf("catalog object %s has %d bytes: %w", key, object.Size, ErrDamaged)
	}
	body, err := provider.Get(ctx, key, 0, object.Size)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var data bytes.Buffer
	if _, err := data.ReadFrom(body); err != nil {
		return nil, fmt.Errorf("reading catalog object %s: %w", key, err)
	}
	return data.Bytes(), nil
}

// load reads an object from a provider that has it whole, the first to answer. It is ErrNotFound (of package storage)
// only when every provider answered that it has none; otherwise the error names what each provider said.
func load[T any](ctx context.Context, c *Catalog, key string) (T, error) {
	type found struct {
		value  T
		absent error
	}
	causes := map[string]error{}
	// One answer is enough for a provider that is away not to be waited for, also when it is that there is no such
	// object; the silence of the other is never taken for the same.
	for _, answer := range storage.Ask(ctx, storage.Question{Providers: c.providers, Enough: 1, Within: c.answerWithin, Everybody: true},
		func(ctx context.Context, provider storage.Provider, _ func()) (f found, err error) {
			err = decode(ctx, provider, key, &f.value)
			if errors.Is(err, storage.ErrNotFound) {
				return found{absent: err}, nil
			}
			return f, err
		}, func(f found) bool { return f.absent == nil }) {
		switch {
		case answer.Err != nil:
			causes[answer.Provider.URL()] = answer.Err
		case answer.Value.absent != nil:
			causes[answer.Provider.URL()] = answer.Value.absent
		default:
			return answer.Value.value, nil
		}
	}
	var none T
	return none, unheard(ctx, "reading", key, causes)
}

// unheard is the error of several providers: what is permanent for one of them shows only when it is for all.
func unheard(ctx context.Context, doing, key string, causes map[string]error) error {
	return &storage.MirrorError{Doing: doing, Key: key, Causes: causes, Ended: ctx.Err()}
}
