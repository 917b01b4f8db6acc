package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	enumspb "go.temporal.io/api/enums/v1"

	"holdfast/catalog"
	"holdfast/dataport"
	"holdfast/keys"
	"holdfast/snapshot"
	"holdfast/storage"
	"holdfast/workspace"
)

// downloadedFiles downloads a workspace's content and counts the files in the stream.
func (d *demo) downloadedFiles(ctx context.Context, space *demoSpace) (files int64, source dataport.Source, err error) {
	input := workspace.AccessInput{Name: space.name, Verb: workspace.VerbDownload, Subject: demoSubject}
	err = d.quietly().throughGrants(ctx, d.control, input, func(_ workspace.Grant, client dataClient) (bool, error) {
		reader, writer := io.Pipe()
		counted := make(chan error, 1)
		go func() {
			stream := tar.NewReader(reader)
			for {
				header, err := stream.Next()
				if errors.Is(err, io.EOF) {
					_, err = io.Copy(io.Discard, reader)
					counted <- err
					return
				}
				if err != nil {
					reader.CloseWithError(err)
					counted <- err
					return
				}
				if header.Typeflag == tar.TypeReg || header.Typeflag == tar.TypeLink || header.Typeflag == tar.TypeGNUSparse {
					files++
				}
			}
		}()
		err := client.Download(ctx, dataport.DownloadRequest{}, func(info dataport.DownloadInfo) (io.Writer, error) {
			source = info.Source
			return writer, nil
		})
		writer.CloseWithError(err)
		return true, errors.Join(err, <-counted)
	})
	return files, source, err
}

// removalOrder reads from Temporal's history in which order things were done: the removal comes after the verification
// and the commit.
func (d *demo) removalOrder(ctx context.Context, space *demoSpace) (string, error) {
	history := d.stack.Client().GetWorkflowHistory(ctx, workspace.WorkflowID(space.name), "", false, enumspb.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT)
	names := map[int64]string{}
	var verified, committed, removing int64
	for history.HasNext() {
		event, err := history.Next()
		if err != nil {
			return "", fmt.Errorf("reading the history: %w", err)
		}
		if scheduled := event.GetActivityTaskScheduledEventAttributes(); scheduled != nil {
			names[event.EventId] = scheduled.ActivityType.Name
			if scheduled.ActivityType.Name == workspace.ActivityRemoveInstance {
				removing = event.EventId
			}
		}
		if completed := event.GetActivityTaskCompletedEventAttributes(); completed != nil {
			switch names[completed.ScheduledEventId] {
			case workspace.ActivityVerify:
				verified = event.EventId
			case workspace.ActivityCommit:
				committed = event.EventId
			}
		}
	}
	if verified == 0 || committed < verified || removing < committed {
		space.problem("the history does not show verification (event %d), commit (%d) and then removal (%d)", verified, committed, removing)
	}
	return fmt.Sprintf("In Temporal's history: verified in event %d, committed in %d, and only then asked to be removed, in %d.", verified, committed, removing), nil
}

// openStores opens the demo's stores as a control worker does.
func (d *demo) openStores(ctx context.Context) (*catalog.Catalog, func(), error) {
	file := d.stack.File()
	providers, closeAll, err := openStores(ctx, file.Stores, settings{DNS: file.DNS, GCSEndpoint: file.GCSEndpoint})
	if err != nil {
		return nil, nil, err
	}
	return catalog.New(providers, storage.PolicyAll), closeAll, nil
}

// storedBytes adds up the objects of a workspace's repository that the emulator holds.
func (d *demo) storedBytes(ctx context.Context, space *demoSpace) (int64, error) {
	if d.stack.DNS()[0].Mode() != 0 {
		return 0, nil // nothing can be listed now
	}
	stores, closeAll, err := d.openStores(ctx)
	if err != nil {
		return 0, err
	}
	defer closeAll()
	var stored int64
	err = stores.Providers()[0].List(ctx, workspace.RepositoryPrefix(space.id)+"/", func(object storage.Object) error {
		stored += object.Size
		return nil
	})
	return stored, err
}

// checkRepositories reads everything back: with our own engine from the first store, and with stock restic, when there
// is one, from the second.
func (d *demo) checkRepositories(ctx context.Context) error {
	stores, closeAll, err := d.openStores(ctx)
	if err != nil {
		return err
	}
	defer closeAll()
	master, err := keys.OpenMaster(ctx, d.stack.File().MasterKey)
	if err != nil {
		return err
	}
	defer master.Close()
	restic, _ := exec.LookPath("restic")
	for _, space := range d.spaces {
		wrapped, err := stores.Password(ctx, space.id)
		if err != nil {
			return err
		}
		password, err := master.Unwrap(ctx, keys.PurposeRepositoryPassword, wrapped.Wrapped)
		if err != nil {
			return err
		}
		if err := checkOne(ctx, stores.Providers()[0], space, password); err != nil {
			return err
		}
		if restic != "" {
			d.resticCheck(ctx, restic, space, password)
		}
	}
	if restic == "" {
		d.out.say("restic is not installed here, so that no stock program has read the repositories; Holdfast has, all of it.")
		return nil
	}
	d.out.say("Read back in full: from Google Cloud Storage by Holdfast, from the directory by stock restic (check --read-data).")
	return nil
}

func checkOne(ctx context.Context, provider storage.Provider, space *demoSpace, password []byte) error {
	mirror, err := storage.NewMirror([]storage.Provider{storage.Sub(provider, workspace.RepositoryPrefix(space.id))}, storage.MirrorOptions{})
	if err != nil {
		return err
	}
	defer mirror.Close()
	repository, err := snapshot.Open(ctx, mirror, password, snapshot.Options{})
	if err != nil {
		return fmt.Errorf("opening the repository of %s: %w", space.name, err)
	}
	defer repository.Close()
	report, err := repository.Check(ctx, snapshot.CheckOptions{ReadData: true})
	if err != nil {
		return fmt.Errorf("checking the repository of %s: %w", space.name, err)
	}
	for _, problem := range report.Errors {
		space.problem("%s", problem)
	}
	return nil
}

func (d *demo) resticCheck(ctx context.Context, restic string, space *demoSpace, password []byte) {
	repository := filepath.Join(d.dir, "store", filepath.FromSlash(workspace.RepositoryPrefix(space.id)))
	command := exec.CommandContext(ctx, restic, "-r", repository, "--no-cache", "check", "--read-data")
	command.Env = append(os.Environ(), "RESTIC_PASSWORD="+string(password))
	output, err := command.CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(output)), "\n")
		space.problem("restic check --read-data: %v: %s", err, lines[len(lines)-1])
	}
}

// errLost is the demo's verdict when not everything is as it was.
var errLost = errors.New("not everything is as it was")

func (d *demo) summary(context.Context) error {
	rows := make([][]string, 0, len(d.spaces))
	lost := false
	for _, space := range d.spaces {
		files, bytes := space.before.files()
		result := "nothing lost"
		if len(space.problems) > 0 {
			result, lost = "NOT as it was", true
		}
		rows = append(rows, []string{space.name, count(files), size(bytes), size(space.received), size(space.againBytes()), seconds(space.took), result})
	}
	fmt.Fprintln(d.p.stdout)
	renderTable(d.p.stdout, []column{
		{name: "workspace"}, {name: "files", right: true}, {name: "bytes", right: true}, {name: "uploaded", right: true},
		{name: "again", right: true}, {name: "stop took", right: true}, {name: "result"},
	}, rows)
	fmt.Fprintln(d.p.stdout)
	for _, space := range d.spaces {
		for _, problem := range space.problems {
			d.out.say("%s: %s", space.name, problem)
		}
	}
	d.out.say("Uploaded and again are what the storage emulator counted: again is what it received beyond what it holds, at most the packs that were in flight. The stops took so long because DNS was away.")
	d.tellWhere()
	if lost {
		return errLost
	}
	return nil
}

// tellWhere says where all of it can be looked at.
func (d *demo) tellWhere() {
	ends := "ends with the demo; --keep leaves it running"
	if d.keep {
		ends = "payloads decoded"
	}
	d.out.say("Temporal's Web UI (%s): %s", ends, d.stack.File().LoginURL())
}
