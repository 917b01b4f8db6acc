package docker

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"

	"holdfast/engine"
)

// The engine reports most registry failures as status 500, or inside a stream that began with 200, so that only the text is
// left. These are the texts of engines 20.10 to 28, in the order in which they are tried: an unresolvable name is
// also a failed dial, and "not found" is part of many messages.
var pullMessages = []struct {
	text *regexp.Regexp
	kind error
}{
	{regexp.MustCompile(`no such host|server misbehaving|temporary failure in name resolution|lookup [^ ]+(?: on [^ ]+)?: .*(?:timeout|refused|unreachable)|name or service not known|no address associated`), engine.ErrRegistryName},
	{regexp.MustCompile(`unauthorized|denied|no basic auth credentials|authentication required|(?:status(?: code)?:?|unexpected http code:?|response status code) *(?:from [^:]*: *)?40[13]|40[13] (?:unauthorized|forbidden)`), engine.ErrImageDenied},
	{regexp.MustCompile(`manifest unknown|name unknown|name_unknown|manifest_unknown|manifest for .* not found|repository .* not found|not found: manifest|repository does not exist|404 (?:page )?not found|no matching manifest|: not found`), engine.ErrImageNotFound},
	{regexp.MustCompile(`timeout|timed out|deadline exceeded|connection refused|connection reset|no route to host|network is unreachable|unexpected eof|: eof|too ?many ?requests|\b(?:429|5\d\d)\b|service unavailable|bad gateway|broken pipe`), engine.ErrRegistryTimeout},
}

// classifyPull gives a failed pull its kind. A registry that is there but cannot answer now (refused connections, 429,
// 5xx) counts as one that did not answer in time: waiting helps with all of them. What is not recognised stays as it is.
func classifyPull(err error, repository string) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("%w: %w", engine.ErrUnavailable, err)
	}
	// The repository is somebody's choice of words: "x/timeout" must not be taken for a time-out.
	text := strings.ToLower(err.Error())
	if repository != "" {
		text = strings.ReplaceAll(text, strings.ToLower(repository), "image")
	}
	switch {
	case errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return fmt.Errorf("%w: %w", engine.ErrImageDenied, err)
	case errdefs.IsNotFound(err) && !strings.Contains(text, "denied"): // the engine answers 404 for a denial, too
		return fmt.Errorf("%w: %w", engine.ErrImageNotFound, err)
	}
	for _, known := range pullMessages {
		if known.text.MatchString(text) {
			return fmt.Errorf("%w: %w", known.kind, err)
		}
	}
	if errdefs.IsUnavailable(err) || errdefs.IsDeadlineExceeded(err) {
		return fmt.Errorf("%w: %w", engine.ErrRegistryTimeout, err)
	}
	return err
}
