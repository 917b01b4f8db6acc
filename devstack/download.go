package devstack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
)

const (
	downloadSite    = "https://temporal.download"
	reachWithin     = 3 * time.Second
	downloadWithin  = 10 * time.Minute
	progressEvery   = 3 * time.Second
	downloadPattern = "temporal-cli-downloading-*" // the SDK's name for what is not complete
)

// sdkDownload is where the SDK's testsuite keeps the program that it downloads for its own version.
func sdkDownload(dir string) string {
	return filepath.Join(dir, "temporal-cli-go-sdk-"+temporal.SDKVersion)
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// trusted reports whether a program in a place that is not ours can only have been put there by this person or by root: the SDK's default
// place is a directory that everybody can write to.
func trusted(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o022 != 0 {
		return false
	}
	status, ok := info.Sys().(*syscall.Stat_t)
	return ok && (status.Uid == 0 || int(status.Uid) == os.Geteuid())
}

// downloadTemporal lets the SDK's testsuite download the program into the cache.
func downloadTemporal(ctx context.Context, options FindOptions) (string, error) {
	if err := reachable(ctx, downloadSite); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, filepath.Join(options.CacheDir, "temporal-download.lock"), func() {
		options.Progress("waiting for another process that is downloading Temporal's server")
	})
	if err != nil {
		return "", err
	}
	defer unlock()
	path := sdkDownload(options.CacheDir)
	if _, err := os.Stat(path); err != nil { // else another process was first
		if err := download(ctx, options, path); err != nil {
			return "", err
		}
	}
	if err := canRunDevServer(ctx, path); err != nil {
		return "", errors.Join(err, os.Remove(path))
	}
	return path, nil
}

func download(ctx context.Context, options FindOptions, path string) error {
	options.Progress("downloading Temporal's server from " + downloadSite)
	ctx, cancel := context.WithTimeout(ctx, downloadWithin)
	defer cancel()
	quiet, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("downloading: %w", err)
	}
	defer quiet.Close()

	ended := make(chan error, 1)
	go func() {
		// The only way to its download is to let it start a server too. With --help that one prints its help and ends.
		_, err := testsuite.StartDevServer(ctx, testsuite.DevServerOptions{
			CachedDownload: testsuite.CachedDownload{DestDir: options.CacheDir},
			ClientOptions:  &client.Options{Logger: silent{}},
			ExtraArgs:      []string{"--help"},
			Stdout:         quiet,
			Stderr:         quiet,
		})
		ended <- err
	}()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	said := time.Now()
	for {
		select {
		case err := <-ended:
			if _, statErr := os.Stat(path); statErr == nil {
				return nil
			}
			return fmt.Errorf("downloading: %w", err)
		case <-look.C:
			if _, err := os.Stat(path); err == nil { // it is renamed to this when it is complete
				cancel()
				<-ended //nolint:errcheck // it was told to end
				return nil
			}
			if time.Since(said) >= progressEvery {
				said = time.Now()
				options.Progress(fmt.Sprintf("downloading Temporal's server: %d MB so far", partialSize(options.CacheDir)>>20))
			}
		}
	}
}

func partialSize(dir string) (size int64) {
	parts, _ := filepath.Glob(filepath.Join(dir, downloadPattern)) // only a bad pattern is an error
	for _, part := range parts {
		if info, err := os.Stat(part); err == nil {
			size = max(size, info.Size())
		}
	}
	return size
}

// reachable asks whether a site answers anything at all, soon.
func reachable(ctx context.Context, site string) error {
	ctx, cancel := context.WithTimeout(ctx, reachWithin)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, site, nil)
	if err != nil {
		return fmt.Errorf("reaching %s: %w", site, err)
	}
	response, err := http.DefaultTransport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("reaching %s: %w", site, err)
	}
	return response.Body.Close()
}
