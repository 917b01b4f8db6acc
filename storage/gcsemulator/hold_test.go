package gcsemulator

import (
	"net/http"
	"testing"
	"time"
)

// What is held is on its way until it is let go, and then done as if nothing had happened; other requests go on meanwhile.
func TestHold(t *testing.T) {
	f := start(t, t.TempDir())
	hold := func(query string) {
		response, err := f.http.Post(f.server.URL()+"/_hold?"+query, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusOK {
			t.Fatalf("_hold?%s: %s, %v", query, response.Status, err)
		}
	}
	write := func(name string) chan error {
		done := make(chan error, 1)
		go func() {
			_, err := f.write(f.object(name), []byte(name), 0, nil)
			done <- err
		}()
		return done
	}
	held := func(want int64) {
		for deadline := time.Now().Add(time.Minute); f.e.Stats().Held != want; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d requests are held, want %d", f.e.Stats().Held, want)
			}
		}
	}
	hold("text=commits/&pass=1")
	if err := <-write("commits/1"); err != nil { // passes
		t.Fatal(err)
	}
	second := write("commits/2")
	held(1)
	if err := <-write("other"); err != nil {
		t.Fatal(err)
	}
	hold("")
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	held(0)
	if string(f.read("commits/2")) != "commits/2" {
		t.Error("what was held was not done")
	}
	// A server that closes lets nobody wait.
	hold("text=commits/")
	third := write("commits/3")
	held(1)
	f.server.CloseConnections()
	held(0)
	hold("")
	<-third
}
