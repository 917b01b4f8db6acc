package enginetest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/engine"
)

// work tells an instance that is used from one that is not, also when nobody is connected to it.
func work(t *testing.T, b *bench) {
	ctx := b.context()
	id := b.create(b.spec())
	_, err := b.engine.Work(ctx, id)
	require.ErrorIs(t, err, engine.ErrNotRunning)
	require.NoError(t, b.engine.Start(ctx, id))
	require.NoError(t, b.engine.Ready(ctx, id))
	count := func() engine.Work {
		t.Helper()
		counted, err := b.engine.Work(ctx, id)
		require.NoError(t, err)
		require.GreaterOrEqual(t, counted.CPUSeconds, 0.0)
		require.GreaterOrEqual(t, counted.IOBytes, int64(0))
		return counted
	}
	quiet := func(what string) {
		t.Helper()
		// The end of what was run before it may still be counted in the first of them.
		b.eventually(what, func() bool {
			before, began := count(), time.Now()
			time.Sleep(500 * time.Millisecond) // the length over which it is looked at
			after := count()
			seconds := time.Since(began).Seconds()
			return after.CPUSeconds-before.CPUSeconds < 0.005*seconds && float64(after.IOBytes-before.IOBytes) < 1024*seconds
		})
	}
	quiet("an instance in which nothing was started is not used")
	b.run(id, "sleep 600 >/dev/null 2>&1 &")
	quiet("what only sleeps does not use it")

	before := count()
	b.run(id, "(while [ ! -e enough ]; do :; done) >/dev/null 2>&1 &")
	b.eventually("a job that nobody is connected to uses it", func() bool { return count().CPUSeconds > before.CPUSeconds+0.2 })
	b.run(id, "touch enough")
	quiet("nothing uses it when that has ended")

	if b.factory.CountsFiles {
		before = count()
		b.run(id, "(head -c 33554432 /dev/zero | cat > file; sleep 600) >/dev/null 2>&1 &")
		b.eventually("bytes that were written", func() bool { return count().IOBytes >= before.IOBytes+32<<20 })
	}
	require.NoError(t, b.engine.Stop(ctx, id, 0))
	_, err = b.engine.Work(ctx, id)
	require.ErrorIs(t, err, engine.ErrNotRunning)
}
