package tail

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// limits are the ones of these tests. Their clock is a made one: it goes on only when everything waits.
var limits = Limits{Silence: time.Second, Total: 3 * time.Second, Bytes: 1 << 20}

// pipe is a Reader of what is written to the other result; an interrupt lets its writers fail.
func pipe() (*Reader, *io.PipeWriter) {
	reader, writer := io.Pipe()
	return NewReader(reader, limits, func() { reader.CloseWithError(io.ErrClosedPipe) }), writer
}

func TestSlowConsumerGetsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := pipe()
		data := bytes.Repeat([]byte("0123456789abcdef"), 50_000) // less than limits.Bytes, more than readAhead
		go func() {
			_, _ = w.Write(data)
		}()
		synctest.Wait()
		require.True(t, r.Waiting())
		r.Ended() // what was left behind keeps it open
		var got []byte
		for piece := make([]byte, 4096); ; {
			time.Sleep(time.Hour)
			n, err := r.Read(piece)
			got = append(got, piece[:n]...)
			if err != nil {
				require.Equal(t, io.EOF, err)
				break
			}
		}
		require.True(t, bytes.Equal(data, got), "%d bytes of %d", len(got), len(data))
		require.True(t, r.WasCut())
	})
}

func TestBackPressureWhileTheCommandRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := pipe()
		written := 0
		go func() {
			for {
				n, err := w.Write(make([]byte, 1000))
				written += n
				if err != nil {
					return
				}
			}
		}()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.LessOrEqual(t, written, readAhead+2*32<<10)
		r.Cut()
		n, err := r.Read(make([]byte, 10))
		require.Zero(t, n)
		require.Equal(t, io.EOF, err)
	})
}

func TestSilenceEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := pipe()
		time.Sleep(time.Hour) // a command that runs may be silent
		_, err := w.Write([]byte("one "))
		require.NoError(t, err)
		r.Ended()
		began := time.Now()
		time.Sleep(limits.Silence * 8 / 10)
		_, err = w.Write([]byte("two"))
		require.NoError(t, err)
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, "one two", string(got))
		require.InDelta(t, 1.9, time.Since(began).Seconds(), 0.11)
		_, err = w.Write([]byte("three"))
		require.ErrorIs(t, err, io.ErrClosedPipe, "the source was interrupted")
	})
}

func TestWriterForEverIsCut(t *testing.T) {
	for name, pause := range map[string]time.Duration{"often": limits.Silence / 10, "without a pause": 0} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, w := pipe()
				go func() {
					for {
						if _, err := w.Write(make([]byte, 4096)); err != nil {
							return
						}
						if pause > 0 {
							time.Sleep(pause)
						}
					}
				}()
				r.Ended()
				began := time.Now()
				got, err := io.ReadAll(r)
				require.NoError(t, err)
				require.LessOrEqual(t, time.Since(began), limits.Total+limits.Silence)
				require.True(t, r.WasCut())
				if pause == 0 {
					require.Equal(t, limits.Bytes, len(got))
				}
				time.Sleep(pause) // the writer sees that nobody reads any more
				synctest.Wait()
			})
		})
	}
}

func TestSourcesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failure := errors.New("failure")
		for _, cause := range []error{io.EOF, failure} {
			r, w := pipe()
			go func() {
				_, _ = w.Write([]byte("all"))
				w.CloseWithError(cause)
			}()
			r.Ended()
			r.Ended()
			time.Sleep(time.Hour)
			got, err := io.ReadAll(r)
			require.Equal(t, "all", string(got))
			if cause == io.EOF {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, failure)
			}
			require.False(t, r.WasCut())
		}
	})
}
