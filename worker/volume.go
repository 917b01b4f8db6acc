package worker

import (
	"context"
	"sync"
	"time"

	"holdfast/activities"
	"holdfast/workspace"
)

const (
	// volumeEvery is how often it is looked whether the shared volume is there, volumeWithin how old the last answer may be: a
	// server of files that is away holds up who asks for as long as it likes.
	volumeEvery  = 2 * time.Second
	volumeWithin = 15 * time.Second
)

// volumeWatch looks whether the shared volume is mounted, beside everything else.
type volumeWatch struct {
	dir   string
	look  func() (string, error)
	mutex sync.Mutex
	seen  workspace.NodeVolume
	at    time.Time
}

func watchVolume(volumes *activities.Volumes, dir string) *volumeWatch {
	return &volumeWatch{dir: dir, look: volumes.VolumeID}
}

// run looks until the context ends. A look that hangs is waited for by nobody.
func (v *volumeWatch) run(ctx context.Context) {
	looks := make(chan struct{}, 1)
	ticker := time.NewTicker(volumeEvery)
	defer ticker.Stop()
	for {
		select {
		case looks <- struct{}{}:
			go func() {
				v.once()
				<-looks
			}()
		default: // the one before has not ended
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

func (v *volumeWatch) once() {
	id, err := v.look()
	v.mutex.Lock()
	defer v.mutex.Unlock()
	v.seen, v.at = workspace.NodeVolume{ID: id, Dir: v.dir}, time.Now()
	if err != nil {
		v.seen.Problem = err.Error()
	}
}

// now is what to announce; nil for a node that was given no shared volume.
func (v *volumeWatch) now() *workspace.NodeVolume {
	if v == nil {
		return nil
	}
	v.mutex.Lock()
	defer v.mutex.Unlock()
	seen := v.seen
	if time.Since(v.at) > volumeWithin {
		seen = workspace.NodeVolume{Dir: v.dir, Problem: v.dir + " does not answer"}
	}
	return &seen
}

func sameVolume(a, b *workspace.NodeVolume) bool {
	return a == nil && b == nil || a != nil && b != nil && *a == *b
}

// scanShared empties the shared volume's trash and names what this node holds there; it waits for nothing.
func (a *agent) scanShared(ctx context.Context) {
	if err := a.shared.EmptyTrash(ctx); err != nil && ctx.Err() == nil {
		a.config.Logger.Warn("emptying the trash of the shared volume", "error", err)
		return
	}
	unknown, err := a.shared.Unknown()
	if err != nil {
		a.config.Logger.Warn("looking on the shared volume for content that belongs to nobody", "error", err)
	}
	for _, name := range unknown {
		a.config.Logger.Warn("a directory of the shared volume belongs to no instance; it is kept", "directory", name)
	}
	held, err := a.shared.Held()
	if err != nil {
		a.config.Logger.Warn("looking for content on the shared volume", "error", err)
	}
	for _, content := range held {
		a.config.Logger.Info("content on the shared volume is this node's", "content", content)
	}
}
