package process

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The control protocol: the client sends a length of four bytes (big endian) together with the descriptors for
// stdin, stdout and stderr, and a JSON request of that length. The init answers with a JSON answer when the
// command runs (or cannot), and one when it ended. A client that half-closes the connection wants the command killed.
const maxRequest = 8 << 20

type controlRequest struct {
	Version     int               `json:"version"`
	Look        bool              `json:"look,omitempty"` // only answer what the workspace is
	ID          string            `json:"id,omitempty"`
	Command     []string          `json:"command,omitempty"`
	Environment map[string]string `json:"environment,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
}

type controlAnswer struct {
	Error    string `json:"error,omitempty"`
	NotFound bool   `json:"not_found,omitempty"` // the program is not there
	Started  bool   `json:"started,omitempty"`
	Exited   bool   `json:"exited,omitempty"`
	Code     int    `json:"code,omitempty"`
	Device   uint64 `json:"device,omitempty"` // of the workspace directory, for Look
	Inode    uint64 `json:"inode,omitempty"`
}

const controlVersion = 1

// handle serves one connection.
func (in *initProcess) handle(conn *net.UnixConn) {
	defer conn.Close()
	answers := json.NewEncoder(conn)
	request, files, err := receiveRequest(conn)
	defer func() {
		for _, file := range files {
			file.Close()
		}
	}()
	if err == nil && request.Version != controlVersion {
		err = fmt.Errorf("this instance was started by another version of holdfast (it speaks %d, asked for %d)", controlVersion, request.Version)
	}
	if err != nil {
		_ = answers.Encode(controlAnswer{Error: err.Error()})
		return
	}
	if request.Look {
		_ = answers.Encode(in.look())
		return
	}
	if len(files) != 3 || len(request.Command) == 0 {
		_ = answers.Encode(controlAnswer{Error: "an exec without a command or descriptors"})
		return
	}
	environment := maps.Clone(in.config.Environment)
	maps.Copy(environment, request.Environment)
	environment[marker], environment[execMarker] = in.config.Environment[marker], request.ID
	pid, exited, err := in.startProcess(request.Command, environment, files, request.TTY)
	if err != nil {
		missing := errors.Is(err, os.ErrNotExist) || errors.Is(err, errNoProgram)
		_ = answers.Encode(controlAnswer{Error: err.Error(), NotFound: missing})
		return
	}
	// The readers of stdout and stderr must see the end when the command closes them: our copies go now.
	for _, file := range files {
		file.Close()
	}
	files = nil
	_ = answers.Encode(controlAnswer{Started: true})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, conn)
	}()
	var code int
	select {
	case code = <-exited:
	case <-gone:
		in.killExec(pid, request.ID)
		code = <-exited
	}
	_ = answers.Encode(controlAnswer{Exited: true, Code: code})
}

func (in *initProcess) look() controlAnswer {
	var info unix.Stat_t
	if err := unix.Stat(in.config.Workspace, &info); err != nil {
		return controlAnswer{Error: "looking at the workspace: " + err.Error()}
	}
	return controlAnswer{Device: uint64(info.Dev), Inode: info.Ino}
}

// killExec kills the command with all that descends from it or carries its mark, until none of it is left.
func (in *initProcess) killExec(pid int, id string) {
	for attempt := 0; attempt < 500; attempt++ {
		all, err := allProcesses()
		if err != nil {
			return
		}
		found := make(map[int]stat)
		if current, ok := all[pid]; ok && current.session == pid {
			found[pid] = current
			descendants(all, pid, found)
		}
		for other, current := range all {
			if current.session == pid {
				found[other] = current
			}
		}
		marked(all, execMarker, id, found)
		delete(found, os.Getpid())
		live := 0
		for other, current := range found {
			if other <= 1 || current.dead() {
				delete(found, other)
				continue
			}
			live++
		}
		if live == 0 {
			return
		}
		signalAll(found, unix.SIGKILL)
		time.Sleep(2 * time.Millisecond)
	}
}

func receiveRequest(conn *net.UnixConn) (controlRequest, []*os.File, error) {
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	defer conn.SetReadDeadline(time.Time{})
	var length [4]byte
	oob := make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := conn.ReadMsgUnix(length[:], oob)
	if err != nil || n != len(length) {
		return controlRequest{}, nil, fmt.Errorf("reading a request (%d bytes): %w", n, errors.Join(err, io.ErrUnexpectedEOF))
	}
	files, err := receivedFiles(oob[:oobn])
	if err != nil {
		return controlRequest{}, files, err
	}
	size := binary.BigEndian.Uint32(length[:])
	if size > maxRequest {
		return controlRequest{}, files, errors.New("the request is too large")
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return controlRequest{}, files, fmt.Errorf("reading a request: %w", err)
	}
	var request controlRequest
	if err := json.Unmarshal(body, &request); err != nil {
		return controlRequest{}, files, errors.New("the request is not understood")
	}
	return request, files, nil
}

func receivedFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("reading the descriptors: %w", err)
	}
	var files []*os.File
	for _, message := range messages {
		fds, err := unix.ParseUnixRights(&message)
		if err != nil {
			return files, fmt.Errorf("reading the descriptors: %w", err)
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "exec"))
		}
	}
	return files, nil
}

func sendRequest(conn *net.UnixConn, request controlRequest, files []*os.File) error {
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	if len(body) > maxRequest {
		return errors.New("the command and its environment are too large")
	}
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, file := range files {
			fds[i] = int(file.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(body)))
	if _, _, err := conn.WriteMsgUnix(length[:], oob, nil); err != nil {
		return fmt.Errorf("asking the instance: %w", err)
	}
	if _, err := conn.Write(body); err != nil {
		return fmt.Errorf("asking the instance: %w", err)
	}
	return nil
}
