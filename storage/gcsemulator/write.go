package gcsemulator

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

func (q *request) deleteObject() *apiError {
	if apiErr := q.e.remove(q); apiErr != nil {
		return apiErr
	}
	q.answer(http.StatusNoContent, nil, nil)
	return nil
}

// patch changes metadata: fields that are sent are set, null removes one.
func (q *request) patch() *apiError {
	var changes map[string]json.RawMessage
	data, err := io.ReadAll(io.LimitReader(q.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(data, &changes)
	}
	if err != nil {
		return badRequest("The change cannot be read: %v", err)
	}
	defer q.e.lockObject(q.op.Bucket, q.op.Object)()
	o, apiErr := q.e.existing(q, q.op.Bucket, q.op.Object, "if", false)
	if apiErr != nil {
		return apiErr
	}
	b, _, _ := q.e.find(q.op.Bucket, q.op.Object)
	changed := &object{meta: o.meta, path: o.path}
	for field, target := range map[string]*string{
		"contentType": &changed.meta.ContentType, "contentEncoding": &changed.meta.ContentEncoding,
		"contentDisposition": &changed.meta.ContentDisposition, "contentLanguage": &changed.meta.ContentLanguage,
		"cacheControl": &changed.meta.CacheControl, "customTime": &changed.meta.CustomTime,
	} {
		if value, ok := changes[field]; ok {
			*target = ""
			if err := json.Unmarshal(value, target); err != nil {
				return badRequest("%s: %v", field, err)
			}
		}
	}
	if value, ok := changes["metadata"]; ok {
		var pairs map[string]*string
		if err := json.Unmarshal(value, &pairs); err != nil {
			return badRequest("metadata: %v", err)
		}
		merged := map[string]string{}
		if q.Method == http.MethodPatch && pairs != nil {
			for key, old := range o.meta.Metadata {
				merged[key] = old
			}
		}
		for key, text := range pairs {
			delete(merged, key)
			if text != nil {
				merged[key] = *text
			}
		}
		changed.meta.Metadata = merged
	}
	changed.meta.Metageneration++
	changed.meta.Updated = time.Now().UTC()
	sub, base := objectBase(o.meta.Name)
	if err := q.e.publish(b, changed, filepath.Join(b.dir, "objects", sub), base); err != nil {
		return internalError("changing an object", err)
	}
	q.answer(http.StatusOK, nil, changed.meta.resource())
	return nil
}

// copyFrom copies an object inside the service; q.op names the destination.
func (q *request) copyFrom(sourceBucket, sourceName string, rewrite bool) *apiError {
	sent, _, apiErr := q.uploadMeta(q.Body)
	if apiErr != nil {
		return apiErr
	}
	if apiErr := validateObjectName(q.op.Object); apiErr != nil {
		return apiErr
	}
	conds, apiErr := parseConditions(q.query, "if")
	if apiErr != nil {
		return apiErr
	}
	source, apiErr := q.e.existing(q, sourceBucket, sourceName, "ifSource", false)
	if apiErr != nil {
		return apiErr
	}
	staged, err := os.CreateTemp(q.e.uploadsDir(), "copy-*.part")
	if err != nil {
		return internalError("copying an object", err)
	}
	defer func() {
		_ = staged.Close()
		_ = os.Remove(staged.Name())
	}()
	from, err := os.Open(source.path)
	if err != nil {
		return internalError("copying an object", err)
	}
	defer from.Close()
	if _, err = io.Copy(staged, from); err == nil {
		err = q.e.sync(staged)
	}
	if err != nil {
		return internalError("copying an object", err)
	}
	meta := source.meta
	if sent.ContentType != "" || len(sent.Metadata) > 0 { // what is sent takes the place of the source's
		meta = sent
		meta.Size, meta.CRC32C, meta.MD5 = source.meta.Size, source.meta.CRC32C, source.meta.MD5
	}
	meta.Bucket, meta.Name, meta.Upload = q.op.Bucket, q.op.Object, ""
	o, apiErr := q.e.commit(meta, staged.Name(), conds)
	if apiErr != nil {
		return apiErr
	}
	if !rewrite {
		q.answer(http.StatusOK, nil, o.meta.resource())
		return nil
	}
	size := strconv.FormatInt(o.meta.Size, 10)
	q.answer(http.StatusOK, nil, map[string]any{
		"kind": "storage#rewriteResponse", "done": true, "objectSize": size, "totalBytesRewritten": size,
		"resource": o.meta.resource(),
	})
	return nil
}

func (q *request) routeBuckets() (func() *apiError, *apiError) {
	switch q.Method {
	case http.MethodGet:
		return func() *apiError {
			q.e.mu.Lock()
			items := []any{}
			var names []string
			for name := range q.e.buckets {
				names = append(names, name)
			}
			slices.Sort(names)
			for _, name := range names {
				items = append(items, q.e.buckets[name].resource())
			}
			q.e.mu.Unlock()
			q.answer(http.StatusOK, nil, map[string]any{"kind": "storage#buckets", "items": items})
			return nil
		}, nil
	case http.MethodPost:
		return func() *apiError {
			var sent struct {
				Name string `json:"name"`
			}
			if err := json.NewDecoder(io.LimitReader(q.Body, 1<<20)).Decode(&sent); err != nil {
				return badRequest("The bucket cannot be read: %v", err)
			}
			b, apiErr := q.e.createBucket(sent.Name)
			if apiErr != nil {
				return apiErr
			}
			q.answer(http.StatusOK, nil, b.resource())
			return nil
		}, nil
	}
	return nil, &apiError{http.StatusMethodNotAllowed, "methodNotAllowed", q.Method + " is not allowed here"}
}

func (q *request) routeBucket() (func() *apiError, *apiError) {
	if q.Method != http.MethodGet {
		return nil, &apiError{http.StatusMethodNotAllowed, "methodNotAllowed", "buckets can be made and read here, nothing else"}
	}
	return func() *apiError {
		b, _, apiErr := q.e.find(q.op.Bucket, "")
		if apiErr != nil {
			return apiErr
		}
		q.answer(http.StatusOK, nil, b.resource())
		return nil
	}, nil
}

// testPermissions grants everything: there is no authentication.
func (q *request) testPermissions() *apiError {
	if _, _, apiErr := q.e.find(q.op.Bucket, ""); apiErr != nil {
		return apiErr
	}
	q.answer(http.StatusOK, nil, map[string]any{
		"kind": "storage#testIamPermissionsResponse", "permissions": q.query["permissions"],
	})
	return nil
}
