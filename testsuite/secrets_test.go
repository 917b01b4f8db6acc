package testsuite_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"google.golang.org/protobuf/proto"

	"holdfast/keys"
	"holdfast/testsuite/stack"
	"holdfast/workspace"
)

// accessToken is how every token for a data port begins.
const accessToken = "hf1."

// forms are the ways in which a value could be written somewhere without looking like itself.
func forms(value string) [][]byte {
	all := [][]byte{[]byte(value), []byte(hex.EncodeToString([]byte(value))), []byte(url.QueryEscape(value))}
	for shift := range 3 {
		// What base64 makes of the value depends on where in the whole it stands; the characters that a neighbour touches are cut.
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			encoded := encoding.EncodeToString([]byte(strings.Repeat("x", shift) + value))
			all = append(all, []byte(encoded[(shift*8+5)/6:len(encoded)-1]))
		}
	}
	return all
}

// holding lists the secrets, by name, that data holds in any form.
func holding(data []byte, secrets map[string]string) (found []string) {
	for name, value := range secrets {
		for _, form := range forms(value) {
			if bytes.Contains(data, form) {
				found = append(found, name)
				break
			}
		}
	}
	return found
}

// gitServer serves one repository to who has the token; in its refusals it quotes what it was given, as servers do.
func gitServer(t *testing.T, token string) (address string, served, refused *atomic.Int64) {
	t.Helper()
	root := t.TempDir()
	work := filepath.Join(root, "work")
	git := func(args ...string) string {
		command := exec.Command("git", args...)
		command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + root, "GIT_CONFIG_NOSYSTEM=1",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com"}
		output, err := command.CombinedOutput()
		require.NoError(t, err, string(output))
		return strings.TrimSpace(string(output))
	}
	backend := filepath.Join(git("--exec-path"), "git-http-backend")
	if _, err := os.Stat(backend); err != nil {
		t.Skipf("git here cannot serve: %v", err)
	}
	git("init", "-q", work)
	require.NoError(t, os.WriteFile(filepath.Join(work, "cloned.txt"), []byte("from git\n"), 0o644))
	git("-C", work, "add", ".")
	git("-C", work, "commit", "-q", "-m", "first")
	git("clone", "-q", "--bare", work, filepath.Join(root, "project.git"))

	served, refused = new(atomic.Int64), new(atomic.Int64)
	handler := &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, given, _ := r.BasicAuth(); given != token {
			refused.Add(1)
			http.Error(w, "no access with "+given, http.StatusForbidden)
			return
		}
		served.Add(1)
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), served, refused
}

// TestSecretsStaySecret proves A15: what a person plants in an environment or in a git address, a repository's password
// and the tokens of data ports are in no history, no database, no log, no output and no store; only where they must be.
func TestSecretsStaySecret(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skipf("git cannot be had here: %v", err)
	}
	secrets := map[string]string{
		"the environment's value": "Planted-Env+7f3kQ9~vLx2",
		"the git token":           "Planted-Git-Xw41mZr8dPq",
		"the refused git token":   "Planted-Bad-Tn60sHy5cBe",
	}
	s := stack.New(t, "all", "process")
	address, served, refused := gitServer(t, secrets["the git token"])

	var said bytes.Buffer // all that the commands said
	run := func(code int, args ...string) stack.Result {
		t.Helper()
		r := stack.Must(t, s, code, nil, args...)
		said.WriteString(r.Stdout + r.Stderr)
		return r
	}
	environment := "TOKEN=" + secrets["the environment's value"]
	run(0, "start", "web", "--env", environment, "--from-git", "http://ada:"+secrets["the git token"]+"@"+address+"/project.git")
	require.Positive(t, served.Load())
	sum := sha256.Sum256([]byte(secrets["the environment's value"]))
	arrives := func() {
		t.Helper()
		r := run(0, "exec", "web", "--", "sh", "-c", `cat cloned.txt && printf %s "$TOKEN" | sha256sum`)
		require.Contains(t, r.Stdout, "from git")
		require.Contains(t, r.Stdout, hex.EncodeToString(sum[:]), "the value does not arrive, so that its absence elsewhere means nothing")
	}
	arrives()
	run(0, "backup", "web")
	run(1, "start", "other", "--env", environment, "--from-git", "http://ada:"+secrets["the refused git token"]+"@"+address+"/project.git")
	require.Positive(t, refused.Load())
	run(0, "download", "web", "-o", filepath.Join(t.TempDir(), "web.tar"))
	run(0, "logs", "web")
	for _, command := range [][]string{{"show", "web", "-o", "json"}, {"show", "web"}, {"why", "other"}, {"show", "other", "-o", "json"}, {"list"}, {"snapshots", "web"}} {
		run(0, command...)
	}
	run(0, "stop", "web")
	run(0, "start", "web", "--not-node", "node-1")
	arrives()
	password := strings.TrimSpace(stack.Must(t, s, 0, nil, "key", "show", "web").Stdout)
	require.GreaterOrEqual(t, len(password), 32)
	secrets["the repository's password"] = password

	// The words of the commands. They do tell which workspace they are about.
	require.Contains(t, said.String(), "web")
	require.Empty(t, holding(said.Bytes(), secrets), "in what the commands said")
	require.NotContains(t, said.String(), accessToken)

	// The raw histories and descriptions, as the server hands them out.
	histories := rawHistories(t, s)
	require.Contains(t, string(histories), workspace.ActivityStartInstance)
	require.Contains(t, string(histories), keys.CodecEncoding)
	require.Empty(t, holding(histories, secrets), "in histories")
	require.NotContains(t, string(histories), accessToken)

	// Every file there is: databases, logs, both stores, nodes.
	database := s.Temporal().DatabaseFile()
	require.FileExists(t, database)
	roots := []string{s.Dir, filepath.Dir(database)}
	held, logged, stored := 0, false, false
	for _, root := range roots {
		require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path != root {
				return nil // it went meanwhile: everything runs on while this looks
			}
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if os.IsNotExist(err) {
				return nil // it went meanwhile
			}
			if err != nil {
				return err
			}
			if strings.HasPrefix(path, database) {
				stored = stored || bytes.Contains(data, []byte("workspace/web"))
			}
			if filepath.Ext(path) == ".log" {
				logged = logged || bytes.Contains(data, []byte("web"))
			}
			found := holding(data, secrets)
			if may(s, path) {
				held += len(found)
				if len(found) > 0 && !strings.Contains(path, "/content/") {
					info, err := entry.Info()
					require.NoError(t, err)
					require.Zero(t, info.Mode().Perm()&0o077, "%s holds %v and is open to others", path, found)
				}
				found = nil
			}
			if len(found) > 0 {
				t.Errorf("%s holds %v", path, found)
			}
			if strings.HasPrefix(path, database) || filepath.Ext(path) == ".log" {
				if bytes.Contains(data, []byte(accessToken)) {
					t.Errorf("%s holds a token for a data port", path)
				}
			}
			return nil
		}))
	}
	require.True(t, stored, "the database does not even hold a workflow's id: this test looks at the wrong file")
	require.True(t, logged, "the logs do not even name the workspace")
	require.Positive(t, held, "not even the instance's own record holds its environment: the search finds nothing")
}

// may says where a secret has to be: in the record of the instance that runs with it, in the person's own clone (whose
// remote has the address as git keeps it), and in key files.
func may(s *stack.Stack, path string) bool {
	for _, node := range s.Nodes() {
		dir := s.NodeDir(node.Name())
		if strings.HasPrefix(path, filepath.Join(dir, "engine")+"/") {
			return true
		}
		if below, ok := strings.CutPrefix(path, filepath.Join(dir, "workspaces")+"/"); ok && strings.Contains(below, "/content/") {
			return true
		}
	}
	return false
}

// rawHistories is all that the server tells about all workflows, without the codec that would decode it.
func rawHistories(t *testing.T, s *stack.Stack) []byte {
	t.Helper()
	var all []byte
	add := func(message proto.Message) {
		data, err := proto.Marshal(message)
		require.NoError(t, err)
		all = append(all, data...)
	}
	listed, err := s.Client().ListWorkflow(t.Context(), &workflowservice.ListWorkflowExecutionsRequest{PageSize: 1000})
	require.NoError(t, err)
	require.NotEmpty(t, listed.Executions)
	add(listed)
	for _, execution := range listed.Executions {
		id, run := execution.Execution.WorkflowId, execution.Execution.RunId
		described, err := s.Client().DescribeWorkflowExecution(t.Context(), id, run)
		require.NoError(t, err)
		add(described)
		for events := s.Client().GetWorkflowHistory(t.Context(), id, run, false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT); events.HasNext(); {
			event, err := events.Next()
			require.NoError(t, err)
			add(event)
		}
	}
	return all
}
