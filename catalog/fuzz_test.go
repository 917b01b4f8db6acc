package catalog_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"

	"holdfast/catalog"
	"holdfast/storage"
	"holdfast/storage/storagetest"
	"holdfast/workspace"
)

// FuzzCatalogObjects: whatever a store hands out as an instance record and a commit, the head is what they say when they are of
// the workspace, token and sequence under whose key they are, else an error and never something else (invariants 3 and 10).
func FuzzCatalogObjects(f *testing.F) {
	f.Add([]byte(`{"workspace_id":"`+id+`","token":1,"node":"n","base":"b"}`), []byte(`{"workspace_id":"`+id+`","token":1,"sequence":1,"snapshot":"s"}`))
	f.Add([]byte(`{"workspace_id":"`+id+`","token":2}`), []byte(`{"workspace_id":"`+id+`","token":9,"sequence":1,"snapshot":"s"}`))
	f.Add([]byte(`{"workspace_id":"a","token":1}`), []byte(`{"workspace_id":"a","token":1,"sequence":1,"snapshot":"s"}`))
	f.Add([]byte(`{}`), []byte(``))
	f.Add([]byte(`[]`), []byte(`null`))
	f.Fuzz(func(t *testing.T, instance, commit []byte) {
		ctx := context.Background()
		provider := storagetest.NewMemory()
		put := func(key string, data []byte) {
			if _, err := provider.Put(ctx, key, data, storage.PutOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		put("catalog/workspaces/"+id+"/instances/00000000000000000001.json", instance)
		c := catalog.New([]storage.Provider{provider}, storage.PolicyAll)

		var record workspace.InstanceRecord
		answer := c.ReadHead(ctx, id).Providers[0]
		good := json.Unmarshal(instance, &record) == nil && record.WorkspaceID == id && record.Token == 1
		if good != (answer.Error == "") || good && answer.Base != record.Base || !good && answer.Base != "" {
			t.Fatalf("%+v for an instance record %q", answer, instance)
		}
		if _, err := c.Instance(ctx, id, 1); good != (err == nil) {
			t.Fatalf("%v for an instance record %q", err, instance)
		}

		put("catalog/workspaces/"+id+"/commits/00000000000000000001/00000000000000000001.json", commit)
		var said workspace.Commit
		answer = c.ReadHead(ctx, id).Providers[0]
		good = json.Unmarshal(commit, &said) == nil && said.WorkspaceID == id && said.Token == 1 && said.Sequence == 1
		switch {
		case !good && (answer.Error == "" || answer.Head != nil):
			t.Fatalf("a damaged commit %q gives %+v", commit, answer)
		case good && (answer.Head == nil || answer.Head.Snapshot != said.Snapshot):
			t.Fatalf("%+v for a commit %q", answer, commit)
		}
		commits, _, failed := c.Commits(ctx, id)
		if good != (len(commits) == 1) || good != (len(failed) == 0) {
			t.Fatalf("%+v and %v for a commit %q", commits, failed, commit)
		}
		for _, err := range failed {
			if !errors.Is(err, catalog.ErrDamaged) {
				t.Fatalf("a damaged commit %q is reported as %v", commit, err)
			}
		}
	})
}
