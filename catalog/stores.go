package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"holdfast/storage"
	"holdfast/workspace"
)

// ErrUnknownStore means that a workspace's snapshots are in a store that is not among those configured here.
var ErrUnknownStore = errors.New("the workspace's snapshots are in a store that is not configured here")

// StoresOf are the providers that a workspace's snapshots are written to and read from, in the policy's order, as its
// newest instance record says. It is what everybody who writes, reads, looks or repairs goes by: never the settings of a
// process, which differ while they are being changed.
//
// A workspace without a record, and one whose record names none, has all; so has any while fewer stores answer than the
// policy requires to find the record: the answer can then differ from one call to the next, so that what belongs together
// asks once. What the catalog itself keeps is on all providers, whatever this says.
func (c *Catalog) StoresOf(ctx context.Context, id string) ([]storage.Provider, error) {
	newest, err := c.NewestToken(ctx, id)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("finding the stores of %s: %w", id, err)
	}
	if err != nil || newest == 0 {
		// All are never fewer than the record names. What is read is verified, and what is removed has been seen on each.
		return c.providers, nil
	}
	record, err := c.Instance(ctx, id, newest)
	if err != nil {
		return nil, fmt.Errorf("finding the stores of %s: %w", id, err)
	}
	return c.named(record.Stores)
}

// StoresToRead is StoresOf for who only reads, and is waited for: one answer is enough for a provider that is away, or silent, not to
// be waited for. When not all have answered it is all providers, since a record that nobody heard of may name others: what is
// read is verified, and a store that lacks it is passed over.
func (c *Catalog) StoresToRead(ctx context.Context, id string) ([]storage.Provider, error) {
	var newest uint64
	for _, answer := range storage.Ask(ctx, storage.Question{Providers: c.providers, Enough: 1, Within: c.answerWithin},
		func(ctx context.Context, provider storage.Provider, _ func()) (uint64, error) {
			return highest(ctx, provider, workspacePrefix(id)+"instances/")
		}, nil) {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("finding the stores of %s: %w", id, ctx.Err())
		}
		if answer.Err != nil {
			return c.providers, nil
		}
		newest = max(newest, answer.Value)
	}
	if newest == 0 {
		return c.providers, nil
	}
	record, err := c.Instance(ctx, id, newest)
	if err != nil {
		return nil, fmt.Errorf("finding the stores of %s: %w", id, err)
	}
	return c.named(record.Stores)
}

// named are the providers with these URLs, all of them when none is named.
func (c *Catalog) named(urls []string) ([]storage.Provider, error) {
	if len(urls) == 0 {
		return c.providers, nil
	}
	var stores []storage.Provider
	for _, p := range c.providers {
		if slices.Contains(urls, p.URL()) {
			stores = append(stores, p)
		}
	}
	if len(stores) != len(urls) {
		return nil, fmt.Errorf("%w: it is written to %v", ErrUnknownStore, urls)
	}
	return stores, nil
}

// Choose says which stores a new instance's record has to name: nil for all. A workspace that is not among percent of all
// is written to as few stores as the policy allows, at least one, in the policy's order. One that was written to more
// before stays with them, and one that was written to all stays with all: a setting that is lowered takes no copy away.
func (c *Catalog) Choose(ctx context.Context, id string, percent int) ([]string, error) {
	fewest := max(c.policy.Required, 1)
	if workspace.DoubleWritten(id, percent) || fewest >= len(c.providers) {
		return nil, nil
	}
	newest, err := c.NewestToken(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("choosing the stores of %s: %w", id, err)
	}
	var before []string
	if newest > 0 {
		// That of this very token when its answer was lost.
		record, err := c.Instance(ctx, id, newest)
		if err != nil {
			return nil, fmt.Errorf("choosing the stores of %s: %w", id, err)
		}
		if before = record.Stores; len(before) == 0 {
			return nil, nil
		}
	}
	var chosen []string
	for i, p := range c.providers {
		if i < fewest || slices.Contains(before, p.URL()) {
			chosen = append(chosen, p.URL())
		}
	}
	for _, url := range before {
		if !slices.Contains(chosen, url) {
			return nil, fmt.Errorf("%w: it is written to %v", ErrUnknownStore, before)
		}
	}
	if len(chosen) == len(c.providers) {
		return nil, nil
	}
	return chosen, nil
}
