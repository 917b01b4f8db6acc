package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"holdfast/storage"
)

// Password is a repository's password, wrapped by the master key: nobody can open it without that key.
type Password struct {
	WorkspaceID string `json:"workspace_id"`
	Name        string `json:"name"`
	Wrapped     []byte `json:"wrapped"`
	MasterKey   string `json:"master_key"` // its fingerprint, so that a wrong key can be named
}

// Password reads a repository's wrapped password; storage.ErrNotFound when every provider answered that it has none.
func (c *Catalog) Password(ctx context.Context, id string) (Password, error) {
	return load[Password](ctx, c, workspacePrefix(id)+"password.json")
}

// CreatePassword stores the wrapped password of a new repository and returns the one that counts: when another
// control worker was faster, that one's. It is refused unless every provider could be asked, because a second
// password for a repository would make one of its copies unreadable.
func (c *Catalog) CreatePassword(ctx context.Context, password Password) (Password, error) {
	there, err := c.Password(ctx, password.WorkspaceID)
	if err == nil || !errors.Is(err, storage.ErrNotFound) {
		return there, err
	}
	return arbitrate(ctx, c, workspacePrefix(password.WorkspaceID)+"password.json", password)
}

// Control holds the control side's private keys, wrapped by the master key.
type Control struct {
	Wrapped   []byte `json:"wrapped"`
	MasterKey string `json:"master_key"`
	Recipient string `json:"recipient"`
}

// Control reads the control side's wrapped keys; storage.ErrNotFound when every provider answered that it has none.
func (c *Catalog) Control(ctx context.Context) (Control, error) {
	return load[Control](ctx, c, controlKey)
}

// CreateControl stores new control keys and returns the ones that count, as CreatePassword does.
func (c *Catalog) CreateControl(ctx context.Context, control Control) (Control, error) {
	there, err := c.Control(ctx)
	if err == nil || !errors.Is(err, storage.ErrNotFound) {
		return there, err
	}
	return arbitrate(ctx, c, controlKey, control)
}

// arbitrate creates an object of which only one version may ever exist when several writers may try at once with
// different ones: the first provider decides, and what it holds goes to the others.
func arbitrate[T any](ctx context.Context, c *Catalog, key string, value T) (T, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return value, fmt.Errorf("encoding catalog object %s: %w", key, err)
	}
	first := c.providers[0]
	_, err = first.Put(ctx, key, data, storage.PutOptions{CreateOnly: true})
	if errors.Is(err, storage.ErrExists) {
		value = *new(T)
		err = decode(ctx, first, key, &value)
	}
	if err != nil {
		return value, fmt.Errorf("writing catalog object %s on %s: %w", key, first.URL(), err)
	}
	return value, c.create(ctx, key, value)
}

type deleted struct {
	WorkspaceID string `json:"workspace_id"`
	Name        string `json:"name"`
	Token       uint64 `json:"token"`
	Subject     string `json:"subject"`
}

// RecordDeleted says that a workspace was deleted, which frees its name. Its backups stay.
func (c *Catalog) RecordDeleted(ctx context.Context, id, name string, token uint64, subject string) error {
	return c.create(ctx, workspacePrefix(id)+"deleted.json", deleted{WorkspaceID: id, Name: name, Token: token, Subject: subject})
}

// DiscardRepository removes a deleted workspace's repository from every provider. It is refused unless the workspace
// was recorded as deleted.
func (c *Catalog) DiscardRepository(ctx context.Context, id, prefix string) error {
	if _, err := load[deleted](ctx, c, workspacePrefix(id)+"deleted.json"); err != nil {
		return fmt.Errorf("discarding the repository of %s: it is not recorded as deleted: %w", id, err)
	}
	for _, answer := range storage.Ask(ctx, storage.Question{Providers: c.providers, Enough: len(c.providers)},
		func(ctx context.Context, provider storage.Provider, _ func()) (struct{}, error) {
			keys, err := c.keysBelow(ctx, provider, prefix+"/")
			for _, key := range keys {
				if err != nil {
					break
				}
				err = c.soon(ctx, func(ctx context.Context) error { return provider.Delete(ctx, key) })
			}
			return struct{}{}, err
		}, nil) {
		if answer.Err != nil {
			return fmt.Errorf("discarding the repository of %s on %s: %w", id, answer.Provider.URL(), answer.Err)
		}
	}
	return nil
}
