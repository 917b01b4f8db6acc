package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/docker/docker/api/types/image"

	"holdfast/engine"
)

// hostPath is where the host image's programs are looked for, and the image's PATH.
const hostPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// hostImage gives an image of this machine's own programs, made once for the same programs.
func (e *Engine) hostImage(ctx context.Context, progress func(string)) (engine.Image, error) {
	e.mu.Lock()
	hash := e.hostHash
	e.mu.Unlock()
	if hash != "" {
		found, err := e.local(ctx, e.options.HostImage+":"+hash)
		if err != nil || found.Reference != "" {
			found.Made = found.Reference != ""
			return found, err
		}
	}
	files, err := collectHostFiles(hostPath)
	if err != nil {
		return engine.Image{}, fmt.Errorf("collecting this machine's programs: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return engine.Image{}, fmt.Errorf("collecting this machine's programs: %w", err)
	}
	hash = files.hash()
	e.mu.Lock()
	e.hostHash = hash
	e.mu.Unlock()
	tag := e.options.HostImage + ":" + hash
	found, err := e.local(ctx, tag)
	if err != nil {
		return engine.Image{}, err
	}
	if found.Reference == "" {
		progress(fmt.Sprintf("making the image %s from %d files of this machine", tag, len(files.files)))
		if err := e.importFiles(ctx, tag, files); err != nil {
			return engine.Image{}, err
		}
		if found, err = e.local(ctx, tag); err != nil {
			return engine.Image{}, err
		}
		if found.Reference == "" {
			return engine.Image{}, fmt.Errorf("%w: %s was made and is not here", engine.ErrImageNotFound, tag)
		}
	}
	found.Made = true
	return found, nil
}

func (e *Engine) importFiles(ctx context.Context, tag string, files *hostFiles) error {
	reader, writer := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := files.writeTar(writer)
		// With an error the engine sees a broken upload and not a short image.
		writer.CloseWithError(err)
		written <- err
	}()
	answer, err := e.client.ImageImport(ctx, image.ImportSource{Source: reader, SourceName: "-"}, tag, image.ImportOptions{
		Message: "made by holdfast from the programs of a machine",
		Changes: []string{"ENV PATH=" + hostPath, "ENV LANG=C.UTF-8", "LABEL io.holdfast.made=host", "WORKDIR " + workspacePath, `CMD ["/bin/sh"]`},
	})
	var failed error
	if err != nil {
		failed = mapError("importing the image", err)
	} else {
		failed = readImport(answer)
	}
	reader.CloseWithError(io.ErrClosedPipe)
	if err := <-written; err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return fmt.Errorf("making the image: %w", errors.Join(err, failed))
	}
	return failed
}

func readImport(answer io.ReadCloser) error {
	defer answer.Close()
	for decoder := json.NewDecoder(answer); ; {
		var message pullMessage
		if err := decoder.Decode(&message); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("reading the engine's answer: %w", err)
		}
		if message.Error != "" {
			return fmt.Errorf("importing the image: %s", message.Error)
		}
	}
}
