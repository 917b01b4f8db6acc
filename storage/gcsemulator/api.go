package gcsemulator

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"time"
)

// apiError is an answer that is not a success.
type apiError struct {
	status  int
	reason  string // the JSON API's word for it
	message string
}

func (a *apiError) Error() string { return fmt.Sprintf("%d %s: %s", a.status, a.reason, a.message) }

func badRequest(format string, args ...any) *apiError {
	return &apiError{http.StatusBadRequest, "invalid", fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) *apiError {
	return &apiError{http.StatusNotFound, "notFound", fmt.Sprintf(format, args...)}
}

func noBucket() *apiError { return notFound("The specified bucket does not exist.") }

func noObject(bucket, name string) *apiError { return notFound("No such object: %s/%s", bucket, name) }

func preconditionFailed() *apiError {
	return &apiError{http.StatusPreconditionFailed, "conditionNotMet", "At least one of the pre-conditions you specified did not hold."}
}

// internalError is a failure of our own disk.
func internalError(doing string, err error) *apiError {
	status := http.StatusInternalServerError
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		status = http.StatusInsufficientStorage
	}
	return &apiError{status, "backendError", fmt.Sprintf("%s: %v", doing, err)}
}

// answer sends a status and a JSON body, unless the After hook loses it.
func (q *request) answer(status int, header http.Header, body any) {
	var data []byte
	if body != nil {
		var err error
		if data, err = json.Marshal(body); err != nil {
			panic(err) // only our own types come here
		}
	}
	q.loseOrKeep(status)
	for key, values := range header {
		q.w.Header()[key] = values
	}
	if data != nil {
		q.w.Header().Set("Content-Type", "application/json; charset=UTF-8")
	}
	q.w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	q.w.WriteHeader(status)
	if q.Method != http.MethodHead {
		_, _ = q.w.Write(data)
	}
}

// loseOrKeep asks the After hook whether the answer may be sent.
func (q *request) loseOrKeep(status int) {
	if after := q.e.hooks.Load().After; after != nil && !after(q.Request, q.op, status) {
		panic(http.ErrAbortHandler)
	}
}

// fail sends an error in the form of the API that was asked.
func (q *request) fail(err *apiError) {
	if err.status == http.StatusNotModified {
		q.loseOrKeep(err.status)
		q.w.WriteHeader(err.status)
		return
	}
	if !q.xml {
		q.answer(err.status, nil, map[string]any{"error": map[string]any{
			"code": err.status, "message": err.message,
			"errors": []map[string]string{{"domain": "global", "reason": err.reason, "message": err.message}},
		}})
		return
	}
	q.loseOrKeep(err.status)
	body, _ := xml.Marshal(struct {
		XMLName xml.Name `xml:"Error"`
		Code    string
		Message string
	}{Code: xmlCode(err), Message: err.message})
	q.w.Header().Set("Content-Type", "application/xml; charset=UTF-8")
	q.w.WriteHeader(err.status)
	if q.Method != http.MethodHead {
		_, _ = q.w.Write(body)
	}
}

func xmlCode(err *apiError) string {
	switch {
	case err.message == noBucket().message:
		return "NoSuchBucket"
	case err.status == http.StatusNotFound:
		return "NoSuchKey"
	case err.status == http.StatusPreconditionFailed:
		return "PreconditionFailed"
	case err.status == http.StatusRequestedRangeNotSatisfiable:
		return "InvalidRange"
	default:
		return err.reason
	}
}

// objectMeta is what is kept of an object, on disk and on the wire as far as the two agree.
type objectMeta struct {
	Bucket             string            `json:"bucket"`
	Name               string            `json:"name"`
	Generation         int64             `json:"generation,string"`
	Metageneration     int64             `json:"metageneration,string"`
	Size               int64             `json:"size,string"`
	CRC32C             string            `json:"crc32c"`
	MD5                string            `json:"md5Hash,omitempty"`
	ContentType        string            `json:"contentType,omitempty"`
	ContentEncoding    string            `json:"contentEncoding,omitempty"`
	ContentDisposition string            `json:"contentDisposition,omitempty"`
	ContentLanguage    string            `json:"contentLanguage,omitempty"`
	CacheControl       string            `json:"cacheControl,omitempty"`
	CustomTime         string            `json:"customTime,omitempty"`
	StorageClass       string            `json:"storageClass,omitempty"`
	Metadata           map[string]string `json:"metadata,omitempty"`
	Created            time.Time         `json:"timeCreated"`
	Updated            time.Time         `json:"updated"`
	Upload             string            `json:"holdfastUpload,omitempty"` // the resumable upload that made it
}

// resource is the object as the JSON API shows it.
func (m objectMeta) resource() any {
	m.Upload = ""
	return struct {
		Kind string `json:"kind"`
		ID   string `json:"id"`
		ETag string `json:"etag"`
		objectMeta
	}{"storage#object", fmt.Sprintf("%s/%s/%d", m.Bucket, m.Name, m.Generation), m.etag(), m}
}

func (m objectMeta) etag() string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%d/%d", m.Generation, m.Metageneration))
}

// conditions are the preconditions of one request; nil means that one is not set.
type conditions struct {
	GenerationMatch, GenerationNotMatch         *int64
	MetagenerationMatch, MetagenerationNotMatch *int64
}

func parseConditions(query url.Values, prefix string) (conditions, *apiError) {
	var c conditions
	for name, target := range map[string]**int64{
		"GenerationMatch": &c.GenerationMatch, "GenerationNotMatch": &c.GenerationNotMatch,
		"MetagenerationMatch": &c.MetagenerationMatch, "MetagenerationNotMatch": &c.MetagenerationNotMatch,
	} {
		text := query.Get(prefix + name)
		if text == "" {
			continue
		}
		value, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return c, badRequest("Invalid value for %s: %q", prefix+name, text)
		}
		*target = &value
	}
	return c, nil
}

// check compares the conditions with the object, which is nil when there is none. For reads a NotMatch that does not
// hold is "not modified".
func (c conditions) check(o *object, read bool) *apiError {
	var generation, metageneration int64
	if o != nil {
		generation, metageneration = o.meta.Generation, o.meta.Metageneration
	}
	if c.GenerationMatch != nil && *c.GenerationMatch != generation ||
		c.MetagenerationMatch != nil && *c.MetagenerationMatch != metageneration {
		return preconditionFailed()
	}
	if c.GenerationNotMatch != nil && *c.GenerationNotMatch == generation ||
		c.MetagenerationNotMatch != nil && o != nil && *c.MetagenerationNotMatch == metageneration {
		if read {
			return &apiError{status: http.StatusNotModified}
		}
		return preconditionFailed()
	}
	return nil
}

func encodeCRC32C(sum uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))
}
