package snapshot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/storage"
)

// copyMissing copies to every provider that was listed what it lacks, or has with a wrong size or checksum, and another
// one has: as ciphertext, its hash verified on the way. What a provider does not take it owes.
//
// It goes on for as long as the policy needs it. Once scanned is closed and as many providers as the policy requires lack
// nothing, the others have the mirror's LagTimeout more, and then owe what is left: one that is new, or slow, is filled by
// RepairMirror, and no snapshot waits for that.
//
// Copies are on their way in the packer's places, so that an interruption costs no more than without them, and one at a
// time, so that a provider that hangs leaves a place to what is new.
func (v *inventory) copyMissing(ctx context.Context, p *packer, scanned <-chan struct{}) error {
	alone, end, err := v.r.store.alone(false)
	if err != nil {
		return err
	}
	defer end()
	tasks := v.missing(alone)
	left := map[string]int{} // copies that have not ended, by URL
	for _, task := range tasks {
		left[task.to.url]++
	}
	ended := make(chan string, len(tasks))
	sending := make(chan struct{}, packUploads-1)
	copying, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	group, groupContext := errgroup.WithContext(copying)
	group.SetLimit(packUploads)
	all := make(chan error, 1)
	go func() {
		for _, task := range tasks {
			group.Go(func() error {
				err := v.copy(groupContext, p, sending, task)
				ended <- task.to.url
				return err
			})
		}
		all <- group.Wait()
	}()
	var overdue <-chan time.Time
	for {
		select {
		case err := <-all:
			if errors.Is(err, errCopiesCut) {
				err = nil
			}
			if err != nil {
				return err
			}
			return v.enough()
		case url := <-ended:
			left[url]--
		case <-scanned:
			scanned = nil
		case <-overdue:
			for url, n := range left {
				if n > 0 {
					v.owe(url, errCopiesCut)
				}
			}
			cut(errCopiesCut)
			overdue = nil
		}
		if scanned == nil && overdue == nil && context.Cause(copying) == nil && v.complete(left) >= v.r.store.policy().Count(len(v.r.store.providers())) {
			timer := time.NewTimer(v.r.store.mirror.Options().LagTimeout)
			defer timer.Stop()
			overdue = timer.C
		}
	}
}

var errCopiesCut = errors.New("not everything that it lacked from before was copied to it while the backup ran")

// complete is how many providers lack nothing.
func (v *inventory) complete(left map[string]int) (n int) {
	for _, p := range v.r.store.providers() {
		if left[p.URL()] == 0 && !v.owes(p.URL()) {
			n++
		}
	}
	return n
}

// missing are the copies that are to be made.
func (v *inventory) missing(alone map[string]store) (tasks []copyTask) {
	for _, provider := range v.r.store.providers() {
		if v.all.failed[provider.URL()] != nil {
			continue
		}
		for key, holders := range v.all.objects {
			size, belongs := v.rightSize(key, holders)
			if !belongs {
				continue
			}
			var held *storage.Object
			if at := slices.IndexFunc(holders, func(o heldObject) bool { return o.provider == provider.URL() }); at >= 0 {
				held = &holders[at].Object
			}
			if held != nil && held.Size == size && !v.disputed(key, holders) {
				continue
			}
			tasks = append(tasks, copyTask{copyTarget{url: provider.URL(), alone: alone[provider.URL()], held: held}, key, size})
		}
	}
	return tasks
}

// copyTask is one object that one provider lacks, perhaps.
type copyTask struct {
	to   copyTarget
	key  string
	size int64
}

// copyTarget is a provider that may lack an object.
type copyTarget struct {
	url   string
	alone store
	held  *storage.Object // what it has under that key; nil for nothing
}

func (v *inventory) copy(ctx context.Context, p *packer, sending chan struct{}, task copyTask) error {
	to, key, size := task.to, task.key, task.size
	if v.owes(to.url) {
		return nil // it will not take this one either; a later backup or repair tries again
	}
	data, err := v.r.store.load(ctx, key, 0, size, func(data []byte) error { return v.r.checkObject(key, data) })
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if permanent(err) && !v.needed(key) {
			v.r.log.Warn("an object is damaged wherever it is, and not copied", "key", key, "error", err)
			return nil
		}
		v.owe(to.url, fmt.Errorf("%s cannot be copied to it: %w", key, err))
		return nil
	}
	if to.held != nil && to.held.Size == size && (!to.held.HasCRC32C || to.held.CRC32C == storage.Checksum(data)) {
		return nil // it is another provider's copy that is wrong
	}
	for _, places := range []chan struct{}{sending, p.slots} {
		select {
		case places <- struct{}{}:
			defer func() { <-places }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if v.owes(to.url) { // by now
		return nil
	}
	if err := to.alone.put(ctx, key, data, to.held == nil); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		v.owe(to.url, fmt.Errorf("does not take %s: %w", key, err))
	}
	return nil
}

// needed reports whether the snapshot to be made may need an object: packs, for what is in them is not stored again, and
// the indexes that name them; not other snapshots, nor an index that could not be read.
func (v *inventory) needed(key string) bool {
	if strings.HasPrefix(key, snapshotPrefix) {
		return false
	}
	id, err := parseID(strings.TrimPrefix(key, indexPrefix))
	if err != nil {
		return true
	}
	v.r.mu.RLock()
	defer v.r.mu.RUnlock()
	_, ok := v.r.indexFiles[id]
	return ok
}
