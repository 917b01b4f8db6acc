package activities

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"holdfast/dataport"
	"holdfast/snapshot"
	"holdfast/workspace"
)

// arrivals connects the activity that waits for a directory with the data port that receives it. The zero value is ready.
type arrivals struct {
	mutex    sync.Mutex
	expected map[string]*arrival
}

type arrival struct {
	arrived   chan struct{}
	awaited   bool
	receiving bool
}

func (a *arrivals) expect(id string, token uint64) (arrived <-chan struct{}, done func()) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.expected == nil {
		a.expected = map[string]*arrival{}
	}
	name := workspace.InstanceName(id, token)
	expected := a.expected[name]
	if expected == nil {
		expected = &arrival{arrived: make(chan struct{}, 1)}
		a.expected[name] = expected
	}
	expected.awaited = true
	return expected.arrived, func() {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		expected.awaited = false
		a.forget(name, expected)
	}
}

// forget drops an arrival that nobody waits for and nobody sends. One that is being received outlives an attempt that
// ends meanwhile: the next attempt waits for it too.
func (a *arrivals) forget(name string, expected *arrival) {
	if !expected.awaited && !expected.receiving && a.expected[name] == expected {
		delete(a.expected, name)
	}
}

func (a *arrivals) receiving(id string, token uint64) bool {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	expected := a.expected[workspace.InstanceName(id, token)]
	return expected != nil && expected.receiving
}

// begin claims an expected arrival; end says whether it arrived.
func (a *arrivals) begin(id string, token uint64) (end func(arrived bool), err error) {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	name := workspace.InstanceName(id, token)
	expected := a.expected[name]
	switch {
	case expected == nil || !expected.awaited && !expected.receiving:
		return nil, fmt.Errorf("no start of this workspace waits for content: %w", dataport.ErrConflict)
	case expected.receiving:
		return nil, fmt.Errorf("another upload for this workspace is under way: %w", dataport.ErrConflict)
	}
	expected.receiving = true
	return func(arrived bool) {
		a.mutex.Lock()
		defer a.mutex.Unlock()
		expected.receiving = false
		if arrived {
			select {
			case expected.arrived <- struct{}{}:
			default:
			}
		}
		a.forget(name, expected)
	}, nil
}

// Upload puts a directory in place for a start that waits for it: whole, or not at all.
func (n *Node) Upload(ctx context.Context, claims dataport.Claims, r io.Reader) (dataport.UploadResult, error) {
	end, err := n.uploads.begin(claims.WorkspaceID, claims.Token)
	if err != nil {
		return dataport.UploadResult{}, err
	}
	arrived := false
	defer func() { end(arrived) }()
	volumes, err := n.on(claims.Volume)
	if err != nil {
		return dataport.UploadResult{}, fmt.Errorf("%w: %w", dataport.ErrNotHere, err)
	}
	found, err := volumes.identify(claims.WorkspaceID, claims.Token)
	if err != nil {
		return dataport.UploadResult{}, fmt.Errorf("%w: %w", dataport.ErrNotHere, err)
	}
	content := volumes.content(claims.WorkspaceID, claims.Token)
	if _, err := os.Lstat(content); found.State != contentPreparing || !errors.Is(err, os.ErrNotExist) {
		return dataport.UploadResult{}, fmt.Errorf("the workspace has its content already: %w", dataport.ErrConflict)
	}
	report, err := snapshot.UntarDirectory(ctx, r, content, snapshot.UntarOptions{
		Prepare: func(string) error {
			// A stream that was cut after the archive's end is refused too: the sender did not say that it was all.
			_, err := io.Copy(io.Discard, r)
			return err
		},
	})
	if err != nil {
		return dataport.UploadResult{}, fmt.Errorf("receiving the directory: %w", err)
	}
	arrived = true
	const mostWarnings = 20
	return dataport.UploadResult{Files: report.Files, Bytes: report.Bytes, Warnings: report.Warnings[:min(len(report.Warnings), mostWarnings)]}, nil
}
