package storagetest

import (
	"testing"

	"holdfast/storage"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) storage.Provider { return NewMemory() },
		WithMissing(func(*testing.T) storage.Provider { return NewMissingMemory() }))
}

func TestSub(t *testing.T) {
	Run(t, func(*testing.T) storage.Provider { return storage.Sub(NewMemory(), "workspaces/x") })
}
