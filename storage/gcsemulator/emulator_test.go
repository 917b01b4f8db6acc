package gcsemulator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/storage"
	"go.uber.org/goleak"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/iterator"
	"google.golang.org/api/option"
)

func TestMain(m *testing.M) {
	// Started once by the client library's package initialisation, for ever.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

type fixture struct {
	t      *testing.T
	dir    string
	e      *Emulator
	server *Server
	http   *http.Client
	client *storage.Client
}

func start(t *testing.T, dir string) *fixture {
	t.Helper()
	f := &fixture{t: t, dir: dir, http: &http.Client{Transport: &http.Transport{}}}
	var err error
	if f.e, err = New(Options{Dir: dir, Buckets: []string{"bucket"}, PageSize: 7}); err != nil {
		t.Fatal(err)
	}
	if f.server, err = f.e.Serve("127.0.0.1:0", nil); err != nil {
		t.Fatal(err)
	}
	f.client, err = storage.NewClient(context.Background(), option.WithEndpoint(f.server.URL()+"/storage/v1/"),
		option.WithHTTPClient(f.http), option.WithoutAuthentication())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.stop)
	return f
}

func (f *fixture) stop() {
	if f.e == nil {
		return
	}
	_ = f.client.Close()
	f.http.CloseIdleConnections()
	_ = f.server.Close()
	if err := f.e.Close(); err != nil {
		f.t.Errorf("closing: %v", err)
	}
	f.e = nil
}

func (f *fixture) object(name string) *storage.ObjectHandle {
	return f.client.Bucket("bucket").Object(name)
}

func (f *fixture) write(o *storage.ObjectHandle, data []byte, chunk int, change func(*storage.Writer)) (*storage.ObjectAttrs, error) {
	w := o.NewWriter(context.Background())
	w.ChunkSize = chunk
	w.DisableAutoChecksum = true
	if change != nil {
		change(w)
	}
	_, writeErr := w.Write(data)
	if err := w.Close(); err != nil {
		return nil, err
	}
	return w.Attrs(), writeErr
}

func (f *fixture) read(name string) []byte {
	f.t.Helper()
	r, err := f.object(name).NewReader(context.Background())
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		f.t.Fatal(err)
	}
	return data
}

func (f *fixture) status(err error, want int) {
	f.t.Helper()
	var api *googleapi.Error
	if want == 404 && errors.Is(err, storage.ErrObjectNotExist) {
		return
	}
	if !errors.As(err, &api) || api.Code != want {
		f.t.Errorf("got %v, want status %d", err, want)
	}
}

func content(seed uint64, size int) []byte {
	data := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data)
	return data
}

func TestKindsOfUploadAndRead(t *testing.T) {
	f := start(t, t.TempDir())
	for i, size := range []int{0, 1, 256 << 10, 300 << 10, 1 << 20, 1<<20 + 1} {
		for _, chunk := range []int{0, 256 << 10, 8 << 20} {
			name, data := fmt.Sprintf("a/%d-%d", size, chunk), content(uint64(i), size)
			attrs, err := f.write(f.object(name), data, chunk, nil)
			if err != nil || attrs.Size != int64(size) {
				t.Fatalf("%s: %+v, %v", name, attrs, err)
			}
			if !bytes.Equal(f.read(name), data) {
				t.Errorf("%s reads differently", name)
			}
		}
	}
	data := content(9, 100_000)
	if _, err := f.write(f.object("x"), data, 0, nil); err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ offset, length, from, to int64 }{
		{0, 10, 0, 10}, {99_990, 100, 99_990, 100_000}, {500, -1, 500, 100_000}, {-10, -1, 99_990, 100_000},
	} {
		reader, err := f.object("x").NewRangeReader(context.Background(), r.offset, r.length)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(reader)
		_ = reader.Close()
		if err != nil || !bytes.Equal(got, data[r.from:r.to]) {
			t.Errorf("range %+v: %d bytes, %v", r, len(got), err)
		}
	}
	_, err := f.object("x").NewRangeReader(context.Background(), 100_000, -1)
	f.status(err, 416)
	_, err = f.object("none").Attrs(context.Background())
	f.status(err, 404)
	_, err = f.client.Bucket("no-such-bucket").Object("x").NewReader(context.Background())
	f.status(err, 404)
}

func TestNamesAndListing(t *testing.T) {
	f := start(t, t.TempDir())
	names := []string{"a", "a/b", "a/b/c", "a//b", "../x", "ä ö?&=%2F+#", strings.Repeat("n", 1024), "z/1", "z/2", "z/3", "z/4", "z/5", "z/6", "z/7", "z/8", "zz"}
	for _, name := range names {
		if _, err := f.write(f.object(name), []byte(name), 0, nil); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
	}
	f.stop()
	f = start(t, f.dir) // everything is there after a restart
	for _, name := range names {
		if got := f.read(name); string(got) != name {
			t.Errorf("%q reads %q", name, got)
		}
	}
	list := func(q *storage.Query) (got []string) {
		it := f.client.Bucket("bucket").Objects(context.Background(), q)
		for {
			attrs, err := it.Next()
			if errors.Is(err, iterator.Done) {
				return got
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, attrs.Prefix+attrs.Name)
			slices.Sort(got) // the client gives a page's prefixes after its objects
		}
	}
	if got := list(nil); len(got) != len(names) { // pages of 7
		t.Errorf("%d names listed, want %d", len(got), len(names))
	}
	for _, test := range []struct {
		query storage.Query
		want  string
	}{
		{storage.Query{Prefix: "a"}, "a a//b a/b a/b/c"},
		{storage.Query{Prefix: "z/", StartOffset: "z/3", EndOffset: "z/6"}, "z/3 z/4 z/5"},
		{storage.Query{Prefix: "z", Delimiter: "/"}, "z/ zz"},
		{storage.Query{Prefix: "a/", Delimiter: "/"}, "a// a/b a/b/"},
		{storage.Query{Prefix: "nothing"}, ""},
	} {
		if got := strings.Join(list(&test.query), " "); got != test.want {
			t.Errorf("%+v: %q, want %q", test.query, got, test.want)
		}
	}
}

func TestPreconditions(t *testing.T) {
	f := start(t, t.TempDir())
	ctx := context.Background()
	first, err := f.write(f.object("x"), []byte("one"), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := f.write(f.object("x").If(storage.Conditions{GenerationMatch: first.Generation}), []byte("two"), 0, nil)
	if err != nil || second.Generation <= first.Generation {
		t.Fatalf("%+v, %v", second, err)
	}
	stale := []storage.Conditions{
		{DoesNotExist: true}, {GenerationMatch: first.Generation}, {GenerationNotMatch: second.Generation},
		{MetagenerationMatch: 9}, {MetagenerationNotMatch: 1},
	}
	for _, c := range stale {
		for _, chunk := range []int{0, 256 << 10} {
			_, err := f.write(f.object("x").If(c), content(1, 600<<10), chunk, nil)
			f.status(err, 412)
		}
		f.status(f.object("x").If(c).Delete(ctx), 412)
		_, err := f.object("x").If(c).Update(ctx, storage.ObjectAttrsToUpdate{ContentType: "a/b"})
		f.status(err, 412)
		want := 412
		if c.GenerationNotMatch != 0 || c.MetagenerationNotMatch != 0 {
			want = 304
		}
		_, err = f.object("x").If(c).Attrs(ctx)
		f.status(err, want)
		if c.GenerationNotMatch == 0 && c.MetagenerationNotMatch == 0 {
			_, err = f.object("x").If(c).NewReader(ctx)
			f.status(err, want)
		}
	}
	if got := f.read("x"); string(got) != "two" {
		t.Fatalf("the object is %q after refused changes", got)
	}
	if _, err := f.object("x").If(storage.Conditions{MetagenerationMatch: 1}).Update(ctx, storage.ObjectAttrsToUpdate{ContentType: "a/b"}); err != nil {
		t.Error(err)
	}
	copied, err := f.object("y").CopierFrom(f.object("x")).Run(ctx)
	if err != nil || copied.CRC32C != second.CRC32C || copied.ContentType != "a/b" {
		t.Errorf("copy: %+v, %v", copied, err)
	}
	if err := f.object("x").If(storage.Conditions{GenerationMatch: second.Generation, MetagenerationMatch: 2}).Delete(ctx); err != nil {
		t.Error(err)
	}
	f.status(f.object("x").Delete(ctx), 404)
	// invariant 3 rests on this: of many create-only writes at once exactly one wins.
	var won atomic.Int64
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			if _, err := f.write(f.object("race").If(storage.Conditions{DoesNotExist: true}), content(uint64(i), 300<<10), 256<<10, nil); err == nil {
				won.Add(1)
			}
		})
	}
	group.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 8 create-only writes won", won.Load())
	}
}

func TestWrongChecksumIsRefused(t *testing.T) {
	f := start(t, t.TempDir())
	for _, chunk := range []int{0, 256 << 10} {
		for what, change := range map[string]func(*storage.Writer){
			"crc32c": func(w *storage.Writer) { w.SendCRC32C = true; w.CRC32C = 1 },
			"md5":    func(w *storage.Writer) { w.MD5 = make([]byte, 16) },
		} {
			_, err := f.write(f.object("x"), content(1, 700<<10), chunk, change)
			f.status(err, 400)
			if _, err := f.object("x").Attrs(context.Background()); !errors.Is(err, storage.ErrObjectNotExist) {
				t.Errorf("%s, chunk %d: an object with a wrong checksum was stored (%v)", what, chunk, err)
			}
		}
	}
}

// TestLostAnswers: whatever answer is lost, the object is what was sent, and what came twice is counted.
func TestLostAnswers(t *testing.T) {
	f := start(t, t.TempDir())
	data := content(3, 4<<20)
	for lose := 1; lose <= 5; lose++ {
		name := fmt.Sprintf("lose-%d", lose)
		var seen atomic.Int64
		f.e.SetHooks(Hooks{After: func(_ *http.Request, op Operation, _ int) bool {
			return op.Kind != OpUploadChunk || seen.Add(1) != int64(lose)
		}})
		o := f.object(name).If(storage.Conditions{DoesNotExist: true}).Retryer(storage.WithErrorFunc(func(err error) bool {
			return err != nil && !strings.Contains(err.Error(), "412")
		}))
		if _, err := f.write(o, data, 1<<20, nil); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f.e.SetHooks(Hooks{})
		if !bytes.Equal(f.read(name), data) {
			t.Fatalf("%s differs", name)
		}
		got := f.e.Stats().PerObject["bucket/"+name]
		again := int64(1 << 20)
		if lose == 5 { // the last request says only that there is no more
			again = 0
		}
		if got.Stored != 1 || got.Received != 4<<20+again || got.ReceivedAgain != again {
			t.Errorf("%s: %+v, want %d bytes received again", name, got, again)
		}
	}
}

// raw is a resumable upload by hand.
func (f *fixture) raw(location, contentRange string, body []byte) (int, http.Header) {
	f.t.Helper()
	q, err := http.NewRequest(http.MethodPut, location, bytes.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	q.Header.Set("Content-Range", contentRange)
	// As the service's own protocol has it, 308 is an answer here and no redirect.
	client := &http.Client{Transport: f.http.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	response, err := client.Do(q)
	if err != nil {
		f.t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode, response.Header
}

func (f *fixture) begin(name string) string {
	f.t.Helper()
	response, err := f.http.Post(f.server.URL()+"/upload/storage/v1/b/bucket/o?uploadType=resumable&name="+name, "application/json", strings.NewReader("{}"))
	if err != nil || response.StatusCode != 200 {
		f.t.Fatal(response, err)
	}
	_ = response.Body.Close()
	return response.Header.Get("Location")
}

func TestResumableProtocolAndRestart(t *testing.T) {
	f := start(t, t.TempDir())
	const k = 256 << 10
	data := content(5, 3*k+100)
	location := f.begin("x")
	check := func(what string, status int, header http.Header, wantStatus int, wantRange string) {
		t.Helper()
		if status != wantStatus || header.Get("Range") != wantRange {
			t.Fatalf("%s: %d %q, want %d %q", what, status, header.Get("Range"), wantStatus, wantRange)
		}
	}
	status, header := f.raw(location, "bytes */*", nil)
	check("nothing yet", status, header, 308, "")
	status, header = f.raw(location, fmt.Sprintf("bytes 0-%d/*", k-1), data[:k])
	check("first chunk", status, header, 308, fmt.Sprintf("bytes=0-%d", k-1))
	status, header = f.raw(location, fmt.Sprintf("bytes %d-%d/*", 2*k, 3*k-1), data[2*k:3*k])
	check("a gap", status, header, 400, "")
	status, header = f.raw(location, "bytes 0-9/*", data[:10])
	check("a chunk of odd size", status, header, 400, "")
	status, header = f.raw(location, "rubbish", nil)
	check("no range", status, header, 400, "")
	status, header = f.raw(location, fmt.Sprintf("bytes 0-%d/*", 2*k-1), data[:2*k])
	check("an overlap", status, header, 308, fmt.Sprintf("bytes=0-%d", 2*k-1))

	old := f.server.URL()
	before := f.e.Stats()
	f.stop()
	f = start(t, f.dir)
	location = strings.Replace(location, old, f.server.URL(), 1)
	if after := f.e.Stats(); after.ObjectStats != before.ObjectStats || after.Received != 3*k || after.ReceivedAgain != k || after.Partial != 1 {
		t.Errorf("counters after a restart %+v, before %+v", after.ObjectStats, before.ObjectStats)
	}
	status, header = f.raw(location, "bytes */*", nil)
	check("after a restart", status, header, 308, fmt.Sprintf("bytes=0-%d", 2*k-1))
	last := fmt.Sprintf("bytes %d-%d/%d", 2*k, len(data)-1, len(data))
	status, header = f.raw(location, last, data[2*k:])
	check("last chunk", status, header, 200, "")
	status, header = f.raw(location, last, data[2*k:])
	check("last chunk again", status, header, 200, "")
	status, header = f.raw(location, "bytes */*", nil)
	check("status of a finished upload", status, header, 200, "")
	old = f.server.URL()
	f.stop()
	f = start(t, f.dir)
	status, header = f.raw(strings.Replace(location, old, f.server.URL(), 1), last, data[2*k:])
	check("last chunk again after a restart", status, header, 200, "")
	if !bytes.Equal(f.read("x"), data) {
		t.Error("the object differs")
	}
	if got := f.e.Stats(); got.Stored != 1 || got.Objects != 1 {
		t.Errorf("%+v: want one object, stored once", got.ObjectStats)
	}
	// The same content anew is counted as received again, other content of the same size is not.
	again := f.e.Stats().ReceivedAgain
	if _, err := f.write(f.object("x"), data, 0, nil); err != nil {
		t.Fatal(err)
	}
	if got := f.e.Stats().ReceivedAgain - again; got != int64(len(data)) {
		t.Errorf("%d bytes received again, want %d", got, len(data))
	}
	if _, err := f.write(f.object("x"), content(6, len(data)), 0, nil); err != nil {
		t.Fatal(err)
	}
	if got := f.e.Stats().ReceivedAgain - again; got != int64(len(data)) {
		t.Error("other content was counted as received again")
	}
}

// TestCutUpload: a single-request upload that is cut leaves no object; a resumable one goes on where it was; what came
// in is counted in both.
func TestCutUpload(t *testing.T) {
	f := start(t, t.TempDir())
	data := content(7, 8<<20)
	cut := func(name string, chunk int) error {
		f.e.SetBytesPerSecond(512 << 10)
		done := make(chan error, 1)
		go func() {
			_, err := f.write(f.object(name), data, chunk, nil)
			done <- err
		}()
		for deadline := time.Now().Add(20 * time.Second); f.e.Stats().PerObject["bucket/"+name].Received < 128<<10; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the upload does not begin")
			}
		}
		f.e.SetBytesPerSecond(0)
		if n := f.server.CloseConnections(); n == 0 {
			t.Error("no connection to close")
		}
		return <-done
	}
	if err := cut("single", 0); err == nil {
		t.Error("a single-request upload that was cut succeeded")
	}
	if _, err := f.object("single").Attrs(context.Background()); !errors.Is(err, storage.ErrObjectNotExist) {
		t.Errorf("an object of an upload that was cut: %v", err)
	}
	if err := cut("resumed", 4<<20); err != nil {
		t.Errorf("a resumable upload that was cut once: %v", err)
	}
	if !bytes.Equal(f.read("resumed"), data) {
		t.Error("a resumable upload that was cut once differs")
	}
	response, err := f.http.Get(f.server.URL() + "/_stats?prefix=bucket/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var stats Stats
	if err := json.NewDecoder(response.Body).Decode(&stats); err != nil {
		t.Fatal(err)
	}
	resumed := stats.PerObject["bucket/resumed"]
	if stats.Partial != 1 || stats.PerObject["bucket/single"].Received == 0 || resumed.Stored != 1 ||
		resumed.ReceivedAgain == 0 || resumed.Received-resumed.ReceivedAgain > 8<<20+blockSize {
		t.Errorf("counted %+v", stats)
	}
}

func TestOneEmulatorPerDirectory(t *testing.T) {
	f := start(t, t.TempDir())
	if e, err := New(Options{Dir: f.dir}); err == nil {
		_ = e.Close()
		t.Error("two emulators opened one directory")
	}
}
