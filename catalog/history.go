package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/storage"
	"holdfast/workspace"
)

// ErrDiffer says that the stores' catalogs do not say the same of a workspace. Repair mends what one of them lacks.
var ErrDiffer = errors.New("the stores' catalogs differ")

// CommitKey names a commit.
type CommitKey struct{ Token, Sequence uint64 }

// History is what every provider's catalog says alike of a part of a workspace's history.
type History struct {
	Token uint64 // the newest recorded one
	Head  string // the snapshot that is the head by invariant 3, empty when there is none
	// Commits are those that were asked for and exist, and the head's, in order.
	Commits []workspace.Commit
	// Bases are the snapshots with which instances began, of all that can have begun with a snapshot of Commits.
	Bases []string
}

// Alike reads what decides over the snapshots of some commits, from every provider, and succeeds only when all answered,
// and alike: fewer answers are never enough to remove something, whatever the policy is. ErrDiffer when they differ.
//
// It costs two listings, and a read of each commit and of each instance since, however long the history is.
func (c *Catalog) Alike(ctx context.Context, id string, keys []CommitKey) (History, error) {
	causes := map[string]error{}
	var first *told
	var from string
	var differ error
	for _, answer := range storage.Ask(ctx, storage.Question{Providers: c.providers, Enough: len(c.providers), Everybody: true},
		func(ctx context.Context, provider storage.Provider, beat func()) (*told, error) {
			return c.tell(ctx, provider, id, keys, beat)
		}, nil) {
		switch url := answer.Provider.URL(); {
		case answer.Err != nil:
			causes[url] = answer.Err
		case first == nil:
			first, from = answer.Value, url
		default:
			if key := first.differs(answer.Value); key != "" {
				differ = fmt.Errorf("%w: %s and %s do not say the same of %s", ErrDiffer, from, url, key)
			}
		}
	}
	switch {
	case len(causes) > 0:
		return History{}, unheard(ctx, "reading", workspacePrefix(id), causes)
	case differ != nil:
		return History{}, differ
	}
	return first.history(id, keys)
}

// told is what one provider said.
type told struct {
	instances, commits []string // keys: of all instances, and of the newest one's commits
	objects            map[string][]byte
}

func (c *Catalog) tell(ctx context.Context, provider storage.Provider, id string, keys []CommitKey, beat func()) (*told, error) {
	t := &told{objects: map[string][]byte{}}
	var err error
	if t.instances, err = c.keysBelow(ctx, provider, workspacePrefix(id)+"instances/"); err != nil || len(t.instances) == 0 {
		return t, err
	}
	beat()
	newest, err := numberIn(t.instances[len(t.instances)-1])
	if err != nil {
		return nil, err
	}
	if t.commits, err = c.keysBelow(ctx, provider, workspacePrefix(id)+"commits/"+digits(newest)+"/"); err != nil {
		return nil, err
	}
	beat()
	// An instance begins with a snapshot of one before it.
	wanted, oldest := []string{instanceKey(id, newest)}, newest
	for _, key := range keys {
		wanted, oldest = append(wanted, commitKey(id, key.Token, key.Sequence)), min(oldest, key.Token)
	}
	for _, key := range t.instances {
		if token, err := numberIn(key); err != nil {
			return nil, err
		} else if token >= oldest {
			wanted = append(wanted, key)
		}
	}
	if len(t.commits) > 0 {
		wanted = append(wanted, t.commits[len(t.commits)-1])
	}
	slices.Sort(wanted)
	var mutex sync.Mutex
	group, groupContext := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for _, key := range slices.Compact(wanted) {
		group.Go(func() error {
			var data []byte
			err := c.soon(groupContext, func(ctx context.Context) (err error) {
				data, err = read(ctx, provider, key)
				return err
			})
			if err != nil && !errors.Is(err, storage.ErrNotFound) {
				return err
			}
			beat()
			mutex.Lock()
			defer mutex.Unlock()
			t.objects[key] = data // nil: it says that there is none
			return nil
		})
	}
	return t, group.Wait()
}

// differs is the first key of which another provider said something else, empty when there is none.
func (t *told) differs(other *told) string {
	for _, keys := range [][2][]string{{t.instances, other.instances}, {t.commits, other.commits}} {
		for i := range max(len(keys[0]), len(keys[1])) {
			switch {
			case i >= len(keys[0]):
				return keys[1][i]
			case i >= len(keys[1]) || keys[0][i] != keys[1][i]:
				return keys[0][i]
			}
		}
	}
	// The same keys were asked for, because they follow from the keys above.
	for key, data := range t.objects {
		if there := other.objects[key]; (data == nil) != (there == nil) || !bytes.Equal(data, there) {
			return key
		}
	}
	return ""
}

func (t *told) history(id string, keys []CommitKey) (History, error) {
	var history History
	if len(t.instances) == 0 {
		return history, nil
	}
	wanted := map[string]bool{}
	for _, key := range keys {
		wanted[commitKey(id, key.Token, key.Sequence)] = true
	}
	newestCommit := ""
	if len(t.commits) > 0 {
		newestCommit = t.commits[len(t.commits)-1]
		wanted[newestCommit] = true
	}
	for key, data := range t.objects {
		if data == nil {
			if !wanted[key] || key == newestCommit {
				return history, fmt.Errorf("%s is listed and is not there: %w", key, ErrDamaged)
			}
			continue
		}
		if wanted[key] {
			var commit workspace.Commit
			if err := unmarshal(key, data, &commit); err != nil {
				return history, err
			}
			history.Commits = append(history.Commits, commit)
			if key == newestCommit {
				history.Head = commit.Snapshot
			}
			continue
		}
		var record workspace.InstanceRecord
		if err := unmarshal(key, data, &record); err != nil {
			return history, err
		}
		if record.Base != "" {
			history.Bases = append(history.Bases, record.Base)
		}
		if key == t.instances[len(t.instances)-1] {
			history.Token = record.Token
			if newestCommit == "" {
				history.Head = record.Base // invariant 3
			}
		}
	}
	sortCommits(history.Commits)
	slices.Sort(history.Bases)
	return history, nil
}
