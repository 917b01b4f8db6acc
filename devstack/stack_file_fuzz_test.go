package devstack

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// FuzzStackFile: a stack's description that is read says what stands in it and is of the version that this program knows; one
// that is not is refused with what to do, and its token is not quoted.
func FuzzStackFile(f *testing.F) {
	whole, err := json.Marshal(StackFile{Version: stackFileVersion, PID: 7, Nodes: []string{"node-1"}, Metrics: map[string]string{"control": "127.0.0.1:1"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(`{"version":2,"codec_token":"topsecret"}`))
	f.Add([]byte(`{"version":1,"codec_token":["topsecret"]}`))
	f.Add([]byte(`null`))
	path := filepath.Join(f.TempDir(), stackFileName)
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := readStackFile(path)
		if err != nil {
			if text := err.Error(); !strings.Contains(text, "start") || strings.Contains(text, "topsecret") || !reflect.DeepEqual(file, StackFile{}) {
				t.Fatalf("%v (%+v)", err, file)
			}
			return
		}
		var want StackFile
		if err := json.Unmarshal(content, &want); err != nil || want.Version != stackFileVersion || !reflect.DeepEqual(file, want) {
			t.Fatalf("%q is read as %+v (%v)", content, file, err)
		}
	})
}
