// Package s3gateway runs versitygw, an S3 server on a directory, as a child process: the S3 that tests and the
// one-machine stack use. It is a child, and not linked, because it changes its working directory and brings along half
// of Azure, Kafka and LDAP.
package s3gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"holdfast/devstack/toolbuild"
)

// Region is what the gateway says its buckets are in.
const Region = "us-east-1"

// Options says how a gateway runs.
type Options struct {
	// Root is the directory whose directories are the buckets. It must be on a file system with user extended
	// attributes and is made when it is not there.
	Root string
	// AccessKey and SecretKey are what its clients sign with. Empty: random ones.
	AccessKey, SecretKey string
	// Address is where it listens, "127.0.0.1:0" (a free port) when empty.
	Address string
	// Progress is told what takes long when versitygw has to be built first. Log is given what the gateway prints.
	Progress, Log io.Writer
}

// Gateway is a running versitygw.
type Gateway struct {
	Endpoint             string // http://127.0.0.1:port
	AccessKey, SecretKey string

	process *os.Process
	exited  chan struct{}
	err     error // why it ended, once exited is closed
	stop    sync.Once
}

// Build makes sure that versitygw is there, and returns its path.
func Build(ctx context.Context, progress io.Writer) (string, error) {
	return toolbuild.Build(ctx, toolbuild.Options{
		Name: "versitygw", Package: "github.com/versity/versitygw/cmd/versitygw", Progress: progress,
	})
}

// Start builds versitygw when that has not been done, starts it, and returns when it answers.
func Start(ctx context.Context, options Options) (*Gateway, error) {
	program, err := Build(ctx, options.Progress)
	if err != nil {
		return nil, err
	}
	if options.Root, err = filepath.Abs(options.Root); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(options.Root, 0o700); err != nil {
		return nil, fmt.Errorf("making the gateway's directory: %w", err)
	}
	if options.AccessKey == "" || options.SecretKey == "" {
		options.AccessKey, options.SecretKey = "holdfast", rand.Text()
	}
	fixed := options.Address != "" && !strings.HasSuffix(options.Address, ":0")
	for attempt := 0; ; attempt++ {
		address := options.Address
		if !fixed {
			if address, err = freeAddress(); err != nil {
				return nil, err
			}
		}
		gateway, err := start(ctx, program, address, options)
		// Between our choice of a port and its use another process may have taken it.
		if err == nil || fixed || attempt == 4 || ctx.Err() != nil {
			return gateway, err
		}
	}
}

func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	address := listener.Addr().String()
	return address, listener.Close()
}

func start(ctx context.Context, program, address string, options Options) (*Gateway, error) {
	// Whoever listens there already would answer in its place.
	probe, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("versitygw cannot listen on %s: %w", address, err)
	}
	if err := probe.Close(); err != nil {
		return nil, err
	}
	command := exec.Command(program, "--quiet", "--keep-alive", "--port", address, "--region", Region, "posix", options.Root)
	// Keys in the environment: everybody on the machine can read arguments.
	command.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+options.AccessKey, "ROOT_SECRET_KEY="+options.SecretKey)
	tail := &lastWords{next: options.Log}
	command.Stdout, command.Stderr = tail, tail
	command.WaitDelay = 5 * time.Second
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	g := &Gateway{Endpoint: "http://" + address, AccessKey: options.AccessKey, SecretKey: options.SecretKey, exited: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// The child dies with the thread that started it, so that thread stays for as long as the child does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			g.err = command.Wait()
			close(g.exited)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("starting versitygw: %w", err)
	}
	g.process = command.Process
	if err := g.ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("versitygw on %s: %w: %s", address, err, tail), g.Stop())
	}
	return g, nil
}

// ready waits until the gateway answers requests.
func (g *Gateway) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, g.Endpoint+"/", nil)
		if err != nil {
			return err
		}
		if response, err := client.Do(request); err == nil {
			ours := strings.Contains(strings.ToLower(response.Header.Get("Server")), "versitygw")
			_ = response.Body.Close()
			if ours {
				return nil
			}
			return fmt.Errorf("something else answers there (server %q)", response.Header.Get("Server"))
		}
		select {
		case <-g.exited:
			return fmt.Errorf("it ended: %w", g.ended())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (g *Gateway) ended() error {
	if g.err == nil {
		return errors.New("exit status 0")
	}
	return g.err
}

// Stop ends the gateway and waits for that. What it has answered is in its directory.
func (g *Gateway) Stop() error {
	g.stop.Do(func() {
		_ = g.process.Signal(syscall.SIGTERM) // it may be gone already
		select {
		case <-g.exited:
			return
		case <-time.After(5 * time.Second):
		}
		_ = g.process.Kill()
		<-g.exited
	})
	<-g.exited
	return nil
}

// Kill ends it at once, as a power failure does.
func (g *Gateway) Kill() {
	_ = g.process.Kill()
	<-g.exited
}

// lastWords keeps the end of what the gateway prints, for the error when it does not start.
type lastWords struct {
	next io.Writer

	mu   sync.Mutex
	text []byte
}

func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text = append(l.text, p...); len(l.text) > 2000 {
		l.text = append([]byte{}, l.text[len(l.text)-2000:]...)
	}
	if l.next != nil {
		return l.next.Write(p)
	}
	return len(p), nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(string(l.text))
}
