package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"

	"holdfast/devstack"
	"holdfast/engine/detect"
	"holdfast/engine/process"
	"holdfast/keys"
	"holdfast/storage"
	"holdfast/storage/resolver"
	"holdfast/workspace"
)

// checkTemporal asks whether the server answers, has the namespace and the search attributes, and whether anybody
// takes work.
func checkTemporal(ctx context.Context, c *cli.Context, s settings, r *report) {
	options, err := clientOptions(c, s)
	if err != nil {
		r.failed("temporal", err)
		return
	}
	dialled, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	connection, err := client.DialContext(dialled, options)
	if err != nil {
		r.failed("temporal", unreachable(fmt.Errorf("%s: %w", options.HostPort, err)))
		return
	}
	defer connection.Close()
	namespace := options.Namespace
	if namespace == "" {
		namespace = client.DefaultNamespace
	}
	service := connection.WorkflowService()
	info, err := service.GetSystemInfo(ctx, &workflowservice.GetSystemInfoRequest{})
	if err != nil {
		r.failed("temporal", inTime(ctx, err))
		return
	}
	r.add("temporal", verdictOK, "", "version %s answers at %s", info.GetServerVersion(), options.HostPort)
	described, err := service.DescribeNamespace(ctx, &workflowservice.DescribeNamespaceRequest{Namespace: namespace})
	var missing *serviceerror.NamespaceNotFound
	switch {
	case errors.As(err, &missing):
		r.add("namespace", verdictFail, "make it with `temporal operator namespace create "+namespace+"`, or name another with TEMPORAL_NAMESPACE", "%s does not exist", namespace)
		return
	case err != nil:
		r.failed("namespace", inTime(ctx, err))
		return
	}
	r.add("namespace", verdictOK, "", "%s, history is kept for %v", described.GetNamespaceInfo().GetName(),
		described.GetConfig().GetWorkflowExecutionRetentionTtl().AsDuration())
	checkAttributes(ctx, connection, namespace, r)
	checkPollers(ctx, connection, r)
}

func checkAttributes(ctx context.Context, connection client.Client, namespace string, r *report) {
	answer, err := connection.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	if err != nil {
		r.failed("search attributes", inTime(ctx, err))
		return
	}
	wanted := devstack.SearchAttributes()
	there := answer.GetCustomAttributes()
	var wrong []string
	mend := "temporal operator search-attribute create"
	for _, name := range sortedKeys(wanted) {
		switch kind, known := there[name]; {
		case !known:
			wrong = append(wrong, name+" is missing")
			mend += fmt.Sprintf(" --name %s --type %s", name, wanted[name])
		case kind != wanted[name]:
			wrong = append(wrong, fmt.Sprintf("%s is %s, not %s", name, kind, wanted[name]))
		}
	}
	if len(wrong) > 0 {
		r.add("search attributes", verdictFail, "`"+mend+"`", "%s", strings.Join(wrong, ", "))
		return
	}
	r.add("search attributes", verdictOK, "", "all %d are there", len(wanted))
}

// checkPollers says whether a control worker has asked for work lately; pollers are for display, not for decisions.
func checkPollers(ctx context.Context, connection client.Client, r *report) {
	queue, err := connection.DescribeTaskQueue(ctx, workspace.ControlQueue, enumspb.TASK_QUEUE_TYPE_WORKFLOW)
	if err != nil {
		r.failed("control workers", inTime(ctx, err))
		return
	}
	if len(queue.GetPollers()) == 0 {
		r.add("control workers", verdictFail, "start one with `holdfast worker --control`, or `holdfast dev` on one machine",
			"none has asked for work in the last minutes: nothing is decided until one does")
		return
	}
	r.add("control workers", verdictOK, "", "%d ask for work", len(queue.GetPollers()))
}

// checkKeys looks at the key files without showing anything of them.
func checkKeys(ctx context.Context, c *cli.Context, s settings, d deployment, r *report) {
	_, codecKey, err := temporalTarget(c, s)
	if codecKey == "" {
		codecKey = d.CodecKey
	}
	switch {
	case codecKey == "" && err != nil:
		r.add("codec key", verdictSkipped, "", "it is not known where it is")
	default:
		if key, err := keys.LoadCodecKey(codecKey); err != nil && !errors.Is(err, keys.ErrExposed) {
			r.add("codec key", verdictFail, "copy the deployment's key file here, mode 0600", "%v", err)
		} else if err == nil {
			r.add("codec key", verdictOK, "", "%s has key %s", codecKey, key.ID())
		}
		checkMode("codec key", codecKey, r)
	}
	if d.MasterKey == "" {
		r.add("master key", verdictSkipped, "", "not configured here; only control machines and operators have it")
		return
	}
	masterURL, err := d.masterKeyURL()
	if err == nil {
		var master *keys.Master
		if master, err = keys.OpenMaster(ctx, masterURL); err == nil {
			r.add("master key", verdictOK, "", "key %s opens", master.ID())
			err = master.Close()
		}
	}
	if err != nil && !errors.Is(err, keys.ErrExposed) { // checkMode says that with its mend
		r.add("master key", verdictFail, "put the right key file or URL into --"+flagMasterKey+" or HOLDFAST_MASTER_KEY", "%v", err)
	}
	if path := keyFile(masterURL); path != "" {
		checkMode("master key", path, r)
	}
}

// checkMode names a key file that others can read, or that lies in a directory that others can write.
func checkMode(check, path string, r *report) {
	info, err := os.Stat(path)
	if err != nil {
		return // opening it has said so
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		r.add(check, verdictFail, "chmod 600 "+path, "%s can be read by others (mode %#o)", path, mode)
	}
	if dir, err := os.Stat(filepath.Dir(path)); err == nil && dir.Mode().Perm()&0o022 != 0 && dir.Mode()&fs.ModeSticky == 0 {
		r.add(check, verdictFail, "chmod go-w "+filepath.Dir(path), "%s, where it lies, can be written by others (mode %#o)", filepath.Dir(path), dir.Mode().Perm())
	}
}

// checkNames asks each DNS server by itself for the stores' names: an outage of one is hidden by the others otherwise.
func checkNames(ctx context.Context, d deployment, r *report) {
	hosts := storeHosts(d)
	if len(hosts) == 0 {
		r.add("dns", verdictSkipped, "", "no store has a name to resolve")
		return
	}
	servers := d.DNS
	if len(servers) == 0 {
		servers = []string{resolver.System, "8.8.8.8", "1.1.1.1"}
	}
	verdicts := make([]finding, len(servers))
	var all sync.WaitGroup
	for i, server := range servers {
		all.Go(func() {
			one := resolver.New(resolver.Options{Servers: []string{server}, StaleFor: -1, Private: d.PrivateZones, Logger: slog.New(slog.DiscardHandler)})
			defer one.Close()
			var problems []string
			began := time.Now()
			for _, host := range hosts {
				if _, err := one.LookupHost(ctx, host); err != nil {
					problems = append(problems, err.Error())
				}
			}
			took := time.Since(began) / time.Duration(len(hosts))
			found := finding{Check: "dns " + server, Verdict: verdictOK, Detail: fmt.Sprintf("resolves %s (%s a name)", strings.Join(hosts, ", "), took.Round(time.Millisecond))}
			if len(problems) > 0 {
				found = finding{Check: "dns " + server, Verdict: verdictWarn, Detail: strings.Join(problems, "; "),
					Mend: "mend this server or name others with --" + flagDNS + "; backups go on while another answers, or with last good answers"}
			}
			verdicts[i] = found
		})
	}
	all.Wait()
	answering := 0
	for _, found := range verdicts {
		if found.Verdict == verdictOK {
			answering++
		}
	}
	for _, found := range verdicts {
		if answering == 0 {
			found.Verdict = verdictFail
		}
		r.add(found.Check, found.Verdict, found.Mend, "%s", found.Detail)
	}
}

// storeHosts are the names that the deployment's stores are reached by.
func storeHosts(d deployment) []string {
	var hosts []string
	add := func(host string) {
		for _, known := range hosts {
			if known == host {
				return
			}
		}
		if _, err := netip.ParseAddr(host); host != "" && err != nil { // an address needs no DNS
			hosts = append(hosts, host)
		}
	}
	for _, store := range d.Stores {
		parsed, err := url.Parse(store)
		if err != nil {
			continue
		}
		if endpoint, err := url.Parse(parsed.Query().Get("endpoint")); err == nil && endpoint.Hostname() != "" {
			add(endpoint.Hostname())
			continue
		}
		switch parsed.Scheme {
		case "gs":
			host := "storage.googleapis.com"
			if d.GCSEndpoint != "" {
				if endpoint, err := url.Parse(d.GCSEndpoint); err == nil {
					host = endpoint.Hostname()
				}
			}
			add(host)
		case "s3":
			host := "s3.amazonaws.com"
			for _, name := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"} {
				if endpoint, err := url.Parse(os.Getenv(name)); err == nil && endpoint.Hostname() != "" {
					host = endpoint.Hostname()
					break
				}
			}
			add(host)
		}
	}
	return hosts
}

// clockWarn and clockFail are how far a clock may be from a store's. Signed requests are refused from 15 minutes on;
// tokens of data ports live for minutes.
const (
	clockWarn = 10 * time.Second
	clockFail = 2 * time.Minute
)

// checkStores writes, reads, lists and deletes a small object on every store, and compares clocks with what it answers.
func (p *program) checkStores(ctx context.Context, d deployment, readOnly bool, r *report) {
	if len(d.Stores) == 0 {
		r.add("stores", verdictSkipped, "name them with --"+flagStore+" to have them checked", "none is configured here")
		return
	}
	reports := make([]report, len(d.Stores))
	var all sync.WaitGroup
	for i, store := range d.Stores {
		all.Go(func() { p.checkStore(ctx, d, store, readOnly, &reports[i]) })
	}
	all.Wait()
	for i := range reports {
		for _, found := range reports[i].findings {
			r.add(found.Check, found.Verdict, found.Mend, "%s", found.Detail)
		}
	}
}

func (p *program) checkStore(ctx context.Context, d deployment, store string, readOnly bool, r *report) {
	check := "store " + store
	if err := checkStoreAddress("store", store); err != nil {
		r.failed(check, err)
		return
	}
	providers, closeAll, err := openStores(ctx, []string{store}, d.settings)
	if err != nil {
		r.failed(check, err)
		return
	}
	defer closeAll()
	// Looked at first: a write would make a directory that is missing, and a store whose disk is not mounted would pass.
	if err := providers[0].List(ctx, "doctor/", func(storage.Object) error { return nil }); err != nil {
		r.failed(check, explainStore(store, inTime(ctx, err)))
		return
	}
	if readOnly {
		r.add(check, verdictOK, "", "can be listed (--read-only: nothing was written)")
		return
	}
	object, sent, err := probe(ctx, providers[0])
	if err != nil {
		r.failed(check, explainStore(store, inTime(ctx, err)))
		return
	}
	r.add(check, verdictOK, "", "write, read, list and delete work")
	if object.Modified.IsZero() || strings.HasPrefix(store, "file://") {
		return
	}
	off := object.Modified.Sub(sent).Abs()
	mend := "let NTP set this machine's clock (`timedatectl set-ntp true`)"
	switch {
	case off > clockFail:
		r.add("clock", verdictFail, mend, "this machine and %s disagree by %v", store, off.Round(time.Second))
	case off > clockWarn:
		r.add("clock", verdictWarn, mend, "this machine and %s disagree by %v", store, off.Round(time.Second))
	default:
		r.add("clock", verdictOK, "", "this machine and %s agree within %v", store, clockWarn)
	}
}

// probe puts a small object through its life. It is deleted whatever happens in between.
func probe(ctx context.Context, provider storage.Provider) (object storage.Object, sent time.Time, err error) {
	content := make([]byte, 256)
	rand.Read(content) // never fails: crypto/rand ends the program instead
	key := "doctor/" + newRequestID()
	sent = time.Now()
	if _, err = provider.Put(ctx, key, content, storage.PutOptions{CreateOnly: true}); err != nil {
		return object, sent, fmt.Errorf("writing: %w", err)
	}
	defer func() {
		gone, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if deleteErr := provider.Delete(gone, key); deleteErr != nil && err == nil {
			err = fmt.Errorf("deleting: %w", deleteErr)
		}
	}()
	read, err := storage.ReadAll(ctx, provider, key, 0, int64(len(content)))
	if err != nil {
		return object, sent, fmt.Errorf("reading: %w", err)
	}
	if !bytes.Equal(read, content) {
		return object, sent, fmt.Errorf("reading: %w", storage.ErrIntegrity)
	}
	found := false
	if err = provider.List(ctx, key, func(listed storage.Object) error {
		found = found || listed.Key == key
		return nil
	}); err != nil {
		return object, sent, fmt.Errorf("listing: %w", err)
	}
	if !found {
		return object, sent, errors.New("listing: an object that was just written is not in the listing")
	}
	if _, err = provider.Put(ctx, key, content[:1], storage.PutOptions{CreateOnly: true}); !errors.Is(err, storage.ErrExists) {
		return object, sent, fmt.Errorf("a create-only write over an object that is there was not refused (%w): commits would not be safe on this store", errors.Join(err, storage.ErrIntegrity))
	}
	object, err = provider.Stat(ctx, key)
	if err != nil {
		return object, sent, fmt.Errorf("describing: %w", err)
	}
	return object, sent, nil
}

// checkEngine asks the container engine of this machine.
func checkEngine(ctx context.Context, d deployment, r *report) {
	scratch, err := os.MkdirTemp("", "holdfast-doctor-")
	if err != nil {
		r.failed("engine", err)
		return
	}
	defer os.RemoveAll(scratch)
	quiet := slog.New(slog.DiscardHandler)
	found, err := detect.Open(ctx, d.Engine, detect.Options{Logger: quiet, Process: process.Options{Root: scratch, Logger: quiet}})
	if err != nil {
		r.add("engine", verdictFail, "start the engine and let this user use it, or choose --engine process", "%v", inTime(ctx, err))
		return
	}
	defer found.Close()
	info, err := found.Info(ctx)
	if err != nil {
		r.add("engine", verdictFail, "start the engine and let this user use it", "%v", inTime(ctx, err))
		return
	}
	details := ""
	if info.Details != "" {
		details = " (" + info.Details + ")"
	}
	r.add("engine", verdictOK, "", "%s %s answers%s", info.Kind, info.Version, details)
	for _, note := range info.Notes {
		r.add("engine", verdictWarn, "", "%s", note)
	}
}
