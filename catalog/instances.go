package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"holdfast/storage"
	"holdfast/workspace"
)

// RecordInstance writes the record that gives an instance the right to write its workspace, then its placement and
// its name. It comes before anything of the instance runs (invariant 3). Repeating it with the same record is a success.
func (c *Catalog) RecordInstance(ctx context.Context, record workspace.InstanceRecord) error {
	if record.Token == 0 {
		return errors.New("recording an instance: its token is 0")
	}
	newest, err := c.NewestToken(ctx, record.WorkspaceID)
	if err != nil {
		return fmt.Errorf("recording instance %d of %s: %w", record.Token, record.WorkspaceID, err)
	}
	if newest > record.Token {
		return fmt.Errorf("recording instance %d of %s: token %d is there: %w", record.Token, record.WorkspaceID, newest, ErrStale)
	}
	// The placement comes first: a node that is lost the moment after the record was written must still be known to hold it.
	if record.Node != "" {
		placement := Placement{WorkspaceID: record.WorkspaceID, Name: record.Name, Token: record.Token}
		if err := c.create(ctx, placementKey(record.Node, record.WorkspaceID, record.Token), placement); err != nil {
			return err
		}
	}
	name := named{WorkspaceID: record.WorkspaceID, Name: record.Name, Owner: record.Owner}
	if err := c.create(ctx, nameKey(record.Name, record.WorkspaceID), name); err != nil {
		return err
	}
	return c.create(ctx, instanceKey(record.WorkspaceID, record.Token), record)
}

type named struct {
	WorkspaceID string `json:"workspace_id"`
	Name        string `json:"name"`
	Owner       string `json:"owner"`
}

// Instance reads one instance record; storage.ErrNotFound when no provider has it.
func (c *Catalog) Instance(ctx context.Context, id string, token uint64) (workspace.InstanceRecord, error) {
	return load[workspace.InstanceRecord](ctx, c, instanceKey(id, token))
}

// NewestToken is the highest token that any provider has recorded, 0 when none. At least the policy's number of
// providers must have been listed, so that a commit is never made on the word of too few.
func (c *Catalog) NewestToken(ctx context.Context, id string) (uint64, error) {
	var newest uint64
	causes := map[string]error{}
	for _, answer := range onAll(ctx, c, func(ctx context.Context, provider storage.Provider) (uint64, error) {
		return highest(ctx, provider, workspacePrefix(id)+"instances/")
	}) {
		if answer.Err != nil {
			causes[answer.Provider.URL()] = answer.Err
			continue
		}
		newest = max(newest, answer.Value)
	}
	if len(c.providers)-len(causes) < c.required() {
		err := unheard(ctx, "listing", workspacePrefix(id)+"instances/", causes)
		if !storage.Retryable(err) {
			return 0, err // a person has to mend it: wrong credentials, a bucket that is gone
		}
		return 0, fmt.Errorf("%w: %w", ErrTooFew, err)
	}
	return newest, nil
}

// NewestOn is the highest token that one provider has recorded, 0 when none. It asks nobody else: for who has to know at
// once of a newer one, wherever that is.
func (c *Catalog) NewestOn(ctx context.Context, provider storage.Provider, id string) (uint64, error) {
	return highest(ctx, provider, workspacePrefix(id)+"instances/")
}

func highest(ctx context.Context, provider storage.Provider, prefix string) (uint64, error) {
	var newest uint64
	err := provider.List(ctx, prefix, func(object storage.Object) error {
		token, err := numberIn(object.Key)
		newest = max(newest, token)
		return err
	})
	return newest, err
}

// Commit writes a commit if its token is the newest recorded one (invariants 3 and 7). Repeating it is a success.
// Between the look and the write a newer instance may be recorded: the commit is then one that no head follows.
//
// Who may commit only while something holds says so with live: it is asked after the look at the stores, which may have
// taken long, immediately before the write, and its error ends the commit. Nil is always allowed.
func (c *Catalog) Commit(ctx context.Context, commit workspace.Commit, live func() error) error {
	newest, err := c.NewestToken(ctx, commit.WorkspaceID)
	if err != nil {
		return fmt.Errorf("committing snapshot %s: %w", commit.Snapshot, err)
	}
	if newest != commit.Token {
		return fmt.Errorf("committing snapshot %s with token %d, the newest is %d: %w", commit.Snapshot, commit.Token, newest, ErrStale)
	}
	if live != nil {
		if err := live(); err != nil { // invariant 7
			return fmt.Errorf("committing snapshot %s: %w", commit.Snapshot, err)
		}
	}
	return c.create(ctx, commitKey(commit.WorkspaceID, commit.Token, commit.Sequence), commit)
}

// ReadHead asks every provider for a workspace's head: the commit with the highest sequence of the highest recorded
// token, else that record's base (invariant 3). Providers answer one by one: comparing is the caller's (invariant 4).
func (c *Catalog) ReadHead(ctx context.Context, id string) workspace.ReadHeadResult {
	result := workspace.ReadHeadResult{Policy: c.policy.String()}
	for _, answer := range onAll(ctx, c, func(ctx context.Context, provider storage.Provider) (workspace.ProviderHead, error) {
		return head(ctx, provider, id)
	}) {
		said := answer.Value
		said.Provider = answer.Provider.URL()
		if answer.Err != nil {
			said.Error = answer.Err.Error()
		}
		result.Providers = append(result.Providers, said)
	}
	return result
}

func head(ctx context.Context, provider storage.Provider, id string) (workspace.ProviderHead, error) {
	var answer workspace.ProviderHead
	token, err := highest(ctx, provider, workspacePrefix(id)+"instances/")
	if err != nil || token == 0 {
		return answer, err
	}
	answer.Token = token
	sequence, err := highest(ctx, provider, workspacePrefix(id)+"commits/"+digits(token)+"/")
	if err != nil {
		return answer, err
	}
	if sequence > 0 {
		var commit workspace.Commit
		if err := decode(ctx, provider, commitKey(id, token, sequence), &commit); err != nil {
			return answer, err
		}
		answer.Head = &commit
		return answer, nil
	}
	var record workspace.InstanceRecord
	if err := decode(ctx, provider, instanceKey(id, token), &record); err != nil {
		return answer, err
	}
	answer.Base = record.Base
	return answer, nil
}

// decode reads one object. What is another one by what it says of itself is damaged: the order of commits is the order
// of keys, and a store that mixed up its objects must not make an old version the newest (invariant 3).
func decode(ctx context.Context, provider storage.Provider, key string, value any) error {
	data, err := read(ctx, provider, key)
	if err != nil {
		return err
	}
	return unmarshal(key, data, value)
}

func unmarshal(key string, data []byte, value any) error {
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("catalog object %s: %w: %w", key, ErrDamaged, err)
	}
	if own := keyOf(value); own != "" && own != key {
		return fmt.Errorf("catalog object %s holds what belongs at %s: %w", key, own, ErrDamaged)
	}
	return nil
}

// keyOf is the key of an object that says which it is, else empty.
func keyOf(value any) string {
	switch value := value.(type) {
	case *workspace.Commit:
		return commitKey(value.WorkspaceID, value.Token, value.Sequence)
	case *workspace.InstanceRecord:
		return instanceKey(value.WorkspaceID, value.Token)
	default:
		return ""
	}
}

// Commits reads every commit of a workspace from all providers, in order, and says which providers have each and
// which could not be read to the end.
func (c *Catalog) Commits(ctx context.Context, id string) (commits []workspace.Commit, holders map[string][]string, failed map[string]error) {
	return c.commitsBelow(ctx, workspacePrefix(id)+"commits/", c.required())
}

// CommitsToShow is Commits for a person, who waits: when one provider has been read, those that are away or silent are among the failed.
// Nothing is to be decided by it.
func (c *Catalog) CommitsToShow(ctx context.Context, id string) (commits []workspace.Commit, holders map[string][]string, failed map[string]error) {
	return c.commitsBelow(ctx, workspacePrefix(id)+"commits/", 1)
}

// CommitsOf is Commits for one instance.
func (c *Catalog) CommitsOf(ctx context.Context, id string, token uint64) (commits []workspace.Commit, holders map[string][]string, failed map[string]error) {
	return c.commitsBelow(ctx, workspacePrefix(id)+"commits/"+digits(token)+"/", c.required())
}

func (c *Catalog) commitsBelow(ctx context.Context, prefix string, enough int) (commits []workspace.Commit, holders map[string][]string, failed map[string]error) {
	type held struct {
		key    string
		commit workspace.Commit
	}
	holders, failed = map[string][]string{}, map[string]error{}
	seen := map[string]bool{}
	for _, answer := range storage.Ask(ctx, storage.Question{Providers: c.providers, Enough: enough},
		func(ctx context.Context, provider storage.Provider, beat func()) (all []held, err error) {
			keys, err := c.keysBelow(ctx, provider, prefix)
			for _, key := range keys {
				if err != nil {
					break
				}
				beat()
				h := held{key: key}
				err = c.soon(ctx, func(ctx context.Context) error { return decode(ctx, provider, key, &h.commit) })
				if err == nil {
					all = append(all, h)
				}
			}
			return all, err
		}, nil) {
		url := answer.Provider.URL()
		for _, h := range answer.Value { // what was read before a failure is there
			holders[h.commit.Snapshot] = append(holders[h.commit.Snapshot], url)
			if !seen[h.key] {
				seen[h.key] = true
				commits = append(commits, h.commit)
			}
		}
		if answer.Err != nil {
			failed[url] = answer.Err
		}
	}
	sortCommits(commits)
	return commits, holders, failed
}
