package storage_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/storage"
	"holdfast/storage/faulty"
	"holdfast/storage/storagetest"
)

// circuited is a mirror of stores in memory that have circuits, with the defaults; what is stored is on all of them.
func circuited(t *testing.T, n int, objects map[string][]byte, work func(mirror *storage.Mirror, faults []*faulty.Provider)) {
	var faults []*faulty.Provider
	var providers []storage.Provider
	for range n {
		memory := storagetest.NewMemory()
		for key, data := range objects {
			_, err := memory.Put(t.Context(), key, data, storage.PutOptions{})
			require.NoError(t, err)
		}
		faults = append(faults, faulty.New(memory))
		providers = append(providers, storage.WithCircuit(faults[len(faults)-1], storage.CircuitOptions{}))
	}
	mirror, err := storage.NewMirror(providers, storage.MirrorOptions{})
	require.NoError(t, err)
	work(mirror, faults)
	require.NoError(t, mirror.Close())
	for _, p := range providers {
		require.NoError(t, p.Close())
	}
}

// Who cannot be read, while all else of him answers, costs a restore of many objects a wait now and then, not one for each:
// nor do two such stores take turns, each tried again by the time that the other was waited for.
func TestReadsDoNotWaitForWhoHangs(t *testing.T) {
	objects := map[string][]byte{}
	for i := range 1000 {
		objects[fmt.Sprint(i)] = []byte(fmt.Sprint(i))
	}
	for hanging := 1; hanging <= 2; hanging++ {
		t.Run(fmt.Sprint(hanging), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				circuited(t, 3, objects, func(mirror *storage.Mirror, faults []*faulty.Provider) {
					for _, f := range faults[:hanging] {
						f.Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.Hang})
					}
					began := time.Now()
					for i := range 1000 {
						_, err := mirror.Load(t.Context(), fmt.Sprint(i), 0, -1, sum(objects[fmt.Sprint(i)]))
						require.NoError(t, err)
						time.Sleep(time.Second) // the work
					}
					lost := time.Since(began) - 1000*time.Second
					require.LessOrEqual(t, lost, time.Duration(hanging)*1000*time.Second/8, "an eighth")
				})
			})
		})
	}
}

// A read that trickles is alive for ever. While another store can be asked it has as much time as a write of the same size.
func TestReadsDoNotWaitForATrickle(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 8<<10) // 128 KiB
	synctest.Test(t, func(t *testing.T) {
		circuited(t, 2, map[string][]byte{"x": data}, func(mirror *storage.Mirror, faults []*faulty.Provider) {
			faults[0].Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.Slow, Delay: 1900 * time.Millisecond}) // for each 4 KiB
			began := time.Now()
			got, err := mirror.Load(t.Context(), "x", 0, int64(len(data)), sum(data))
			require.NoError(t, err)
			require.Equal(t, data, got)
			require.Equal(t, 32*time.Second, time.Since(began))
			require.EqualValues(t, 1, mirror.Fallbacks()[faults[0].URL()])
			// Alone it is read for as long as it takes: there is nothing better.
			faults[1].Inject(faulty.Rule{Op: faulty.Get, Err: storage.ErrNotFound})
			_, err = mirror.Load(t.Context(), "x", 0, int64(len(data)), sum(data))
			require.NoError(t, err)
		})
	})
}

// A store that was left early is the one that has it: it is asked once more, with all the time there is.
func TestWhoWasLeftEarlyIsAskedAgain(t *testing.T) {
	for name, other := range map[string]faulty.Rule{
		"absent": {Op: faulty.Get, Err: storage.ErrNotFound}, "damaged": {Op: faulty.Get, Kind: faulty.WrongBytes},
		"hangs": {Op: faulty.Get, Kind: faulty.Hang},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				circuited(t, 2, map[string][]byte{"x": []byte("content")}, func(mirror *storage.Mirror, faults []*faulty.Provider) {
					faults[0].Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.Slow, Delay: 12 * time.Second})
					faults[1].Inject(other)
					began := time.Now()
					got, err := mirror.Load(t.Context(), "x", 0, 7, sum([]byte("content")))
					require.NoError(t, err)
					require.Equal(t, "content", string(got))
					require.LessOrEqual(t, time.Since(began), 60*time.Second)
				})
			})
		})
	}
	// The caller's own end stays what it is.
	synctest.Test(t, func(t *testing.T) {
		circuited(t, 2, map[string][]byte{"x": []byte("content")}, func(mirror *storage.Mirror, faults []*faulty.Provider) {
			faults[0].Inject(faulty.Rule{Op: faulty.Get, Kind: faulty.Hang})
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := mirror.Load(ctx, "x", 0, 7, nil)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.NotErrorIs(t, err, storage.ErrStalled)
		})
	})
}
