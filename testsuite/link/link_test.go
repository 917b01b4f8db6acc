package link_test

import (
	"bufio"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/testsuite/link"
)

// echo answers every line with itself.
func echo(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(connection, connection) }()
		}
	}()
	return listener.Addr().String()
}

func dial(t *testing.T, address string) (net.Conn, *bufio.Reader) {
	t.Helper()
	connection, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = connection.Close() })
	return connection, bufio.NewReader(connection)
}

func hears(t *testing.T, from *bufio.Reader, want string) {
	t.Helper()
	line, err := from.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, want+"\n", line)
}

// silent says that nothing comes for a while.
func silent(t *testing.T, connection net.Conn) {
	t.Helper()
	require.NoError(t, connection.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
	_, err := connection.Read(make([]byte, 1))
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout())
	require.NoError(t, connection.SetReadDeadline(time.Time{}))
}

func TestLinkThatIsCut(t *testing.T) {
	l, err := link.New(echo(t))
	require.NoError(t, err)
	connection, from := dial(t, l.Address())
	_, err = connection.Write([]byte("before\n"))
	require.NoError(t, err)
	hears(t, from, "before")

	l.Cut()
	l.Cut()
	_, err = connection.Write([]byte("while it is cut\n"))
	require.NoError(t, err)
	silent(t, connection)
	late, fromLate := dial(t, l.Address())
	_, err = late.Write([]byte("late\n"))
	require.NoError(t, err)
	silent(t, late)

	l.Mend()
	hears(t, from, "while it is cut")
	hears(t, fromLate, "late")

	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	_, err = from.ReadByte()
	require.Error(t, err)
	_, err = net.Dial("tcp", l.Address())
	require.Error(t, err)
}

// A link that is closed while it is cut leaves nobody waiting.
func TestLinkThatIsClosedWhileCut(t *testing.T) {
	l, err := link.New(echo(t))
	require.NoError(t, err)
	connection, from := dial(t, l.Address())
	l.Cut()
	_, err = connection.Write([]byte("lost\n"))
	require.NoError(t, err)
	require.NoError(t, l.Close())
	_, err = from.ReadByte()
	require.Error(t, err)
}

// A link with a delay gives everything late, and in order; without it again at once.
func TestLinkThatIsSlow(t *testing.T) {
	l, err := link.New(echo(t))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	connection, from := dial(t, l.Address())
	const delay = 150 * time.Millisecond
	l.Delay(delay)
	began := time.Now()
	for _, line := range []string{"one", "two"} {
		_, err = connection.Write([]byte(line + "\n"))
		require.NoError(t, err)
	}
	hears(t, from, "one")
	hears(t, from, "two")
	require.GreaterOrEqual(t, time.Since(began), 2*delay, "there and back")
	l.Delay(0)
	_, err = connection.Write([]byte("at once\n"))
	require.NoError(t, err)
	hears(t, from, "at once")
}

// What nobody listens behind ends at once.
func TestLinkToNobody(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	nobody := listener.Addr().String()
	require.NoError(t, listener.Close())
	l, err := link.New(nobody)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	_, from := dial(t, l.Address())
	_, err = from.ReadByte()
	require.Error(t, err)
}

// TestLinkInTrouble: a connection is reset after the bytes that it may carry, those that come first and no other; and the next is
// as it should be.
func TestLinkInTrouble(t *testing.T) {
	l, err := link.New(echo(t))
	require.NoError(t, err)
	defer func() { require.NoError(t, l.Close()) }()
	l.Disturb(func(connection int) link.Trouble {
		return link.Trouble{Reset: connection == 0, After: 9}
	})
	connection, from := dial(t, l.Address())
	_, err = connection.Write([]byte("one\n")) // 4 bytes there, and 4 back
	require.NoError(t, err)
	hears(t, from, "one")
	_, err = connection.Write([]byte("two\n"))
	require.NoError(t, err)
	_, err = from.ReadString('\n')
	require.ErrorIs(t, err, syscall.ECONNRESET)

	connection, from = dial(t, l.Address())
	_, err = connection.Write([]byte("three\n"))
	require.NoError(t, err)
	hears(t, from, "three")
	require.Equal(t, 2, l.Connections())
	l.Disturb(nil)
	require.Zero(t, l.Connections())
}
