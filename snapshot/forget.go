package snapshot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/storage"
)

// ErrProtected means that a snapshot must not be forgotten.
var ErrProtected = errors.New("the snapshot must stay")

// ForgetOptions say which snapshots Forget removes: those that Keep does not want, or those that Snapshots names.
type ForgetOptions struct {
	// Keep is applied to each group by itself. It must want something, unless Snapshots names some.
	Keep KeepPolicy
	// Snapshots are to be removed, by their ids or prefixes of them. Keep must then be empty, and so must the filters.
	Snapshots []string

	// Hosts, Paths and Tags narrow down what is considered; what is not considered stays. A snapshot matches with one of
	// the hosts, with all of the paths, and with all tags of one of the lists.
	Hosts []string
	Paths []string
	Tags  [][]string
	// GroupBy are the fields by which snapshots are grouped: "host", "paths" and "tags". Default: host and paths; a
	// list that is empty but not nil makes one group of all.
	GroupBy []string

	// Protect are snapshots, by their full ids, that stay whatever else is said, such as those that a catalog names.
	Protect []string
	// DryRun says what would be done, and locks nothing.
	DryRun bool
	// LockWait is how long to wait for others to end their work. Default: not at all.
	LockWait time.Duration
	// LeaveProtected has those of Snapshots that must stay be left, and told in Keep, instead of being an error.
	LeaveProtected bool
	// Allowed, when set, is asked before each removal; its error ends the Forget.
	Allowed func(ctx context.Context) error
}

// ForgetReport is what a Forget did, or would do.
type ForgetReport struct {
	Groups  []ForgetGroup `json:"groups"`
	Removed int           `json:"removed"` // snapshots that were removed; with DryRun 0
	DryRun  bool          `json:"dry_run,omitempty"`
}

// ForgetGroup is one group of snapshots, the newest first.
type ForgetGroup struct {
	Host   string         `json:"host,omitempty"`
	Paths  []string       `json:"paths,omitempty"`
	Tags   []string       `json:"tags,omitempty"`
	Keep   []KeptSnapshot `json:"keep"`
	Remove []Info         `json:"remove"`
}

// KeptSnapshot is a snapshot that stays, and why.
type KeptSnapshot struct {
	Info
	Reasons []string `json:"reasons"`
}

// Forget removes snapshots: only their files, and nothing of what they hold, which is what Prune is for.
//
// Of the snapshots of one hostname and the same paths the newest, and the newest of each kind, always stay; so no
// directory loses its last snapshot, nor its last final one. A policy that wants nothing is storage.ErrInvalid. To name one of
// those, or one of options.Protect, is ErrProtected, and then nothing is removed. ErrLocked while anybody works on the
// repository. While a provider cannot be listed, or a snapshot cannot be read, nothing is removed either: the newest
// one might be what cannot be seen.
//
// The report is complete also when the removal failed half-way; doing it again goes on.
func (r *Repository) Forget(ctx context.Context, options ForgetOptions) (_ *ForgetReport, err error) {
	ended := r.options.Metrics.began("forget")
	defer func() { ended(err) }()
	if err := options.validate(); err != nil {
		return nil, fmt.Errorf("forgetting snapshots: %w", err)
	}
	var lock *heldLock
	if !options.DryRun {
		if lock, err = r.lockExclusive(ctx, options.LockWait); err != nil {
			return nil, fmt.Errorf("forgetting snapshots: %w", err)
		}
		defer lock.release(ctx)
	}
	report, err := r.planForget(ctx, &options)
	if err != nil {
		return nil, fmt.Errorf("forgetting snapshots: %w", withCause(ctx, err))
	}
	if options.DryRun {
		return report, nil
	}
	for i := range report.Groups {
		for _, info := range report.Groups[i].Remove {
			// invariant 3: a snapshot that is gone is not to be had back, so nobody may have begun anything meanwhile.
			err := lock.stillSole(ctx)
			if err == nil && options.Allowed != nil {
				err = options.Allowed(ctx)
			}
			if err == nil {
				err = r.store.remove(ctx, snapshotPrefix+info.ID)
			}
			if err != nil {
				return report, fmt.Errorf("forgetting snapshots, after %d: %w", report.Removed, withCause(ctx, err))
			}
			report.Removed++
			r.dropRemembered(snapshotPrefix + info.ID)
		}
	}
	return report, nil
}

func (o *ForgetOptions) validate() error {
	if o.GroupBy == nil {
		o.GroupBy = []string{"host", "paths"}
	}
	for _, field := range o.GroupBy {
		if field != "host" && field != "paths" && field != "tags" {
			return fmt.Errorf(`grouping by %q: want "host", "paths" or "tags": %w`, field, storage.ErrInvalid)
		}
	}
	filtered := len(o.Hosts)+len(o.Paths)+len(o.Tags) > 0
	switch {
	case len(o.Snapshots) == 0 && o.Keep.wantsNothing():
		return fmt.Errorf("nothing says what to keep: %w", storage.ErrInvalid)
	case len(o.Snapshots) > 0 && (filtered || !o.Keep.wantsNothing()):
		return fmt.Errorf("snapshots are named, and a policy or a filter is given too: %w", storage.ErrInvalid)
	}
	return nil
}

// planForget decides what goes.
func (r *Repository) planForget(ctx context.Context, options *ForgetOptions) (*ForgetReport, error) {
	found, damaged, l, err := r.listSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	if err := l.failure(); err != nil {
		return nil, fmt.Errorf("not all providers can be listed: %w", err)
	}
	if err := unreadable(l, damaged); err != nil {
		return nil, err
	}
	slices.Reverse(found) // the newest first
	protected := protectedSnapshots(found, options.Protect)
	report := &ForgetReport{Groups: []ForgetGroup{}, DryRun: options.DryRun}
	if len(options.Snapshots) > 0 {
		group, err := r.namedGroup(ctx, options, protected)
		if err != nil {
			return nil, err
		}
		report.Groups = append(report.Groups, group)
		return report, nil
	}
	now := time.Now()
	for _, group := range groupSnapshots(found, options) {
		result := group.describe(options.GroupBy)
		for i, reasons := range options.Keep.apply(group.snapshots, now) {
			s := &group.snapshots[i]
			if why := protected[s.id]; why != "" {
				reasons = append(reasons, why)
			}
			if len(reasons) > 0 {
				result.Keep = append(result.Keep, KeptSnapshot{Info: s.info(), Reasons: reasons})
			} else {
				result.Remove = append(result.Remove, s.info())
			}
		}
		report.Groups = append(report.Groups, result)
	}
	return report, nil
}

// unreadable is the error for snapshots that cannot be read. A file of another name than a snapshot has is none, such
// as what a killed restic left.
func unreadable(l listing, damaged []error) error {
	foreign := 0
	for key := range l.objects {
		if _, err := parseID(strings.TrimPrefix(key, snapshotPrefix)); err != nil {
			foreign++
		}
	}
	if len(damaged) == foreign {
		return nil
	}
	return fmt.Errorf("not all snapshots can be read: %w", errors.Join(damaged...))
}

// protectedSnapshots are those that stay whatever a policy says, with the reason. found begins with the newest.
func protectedSnapshots(found []storedSnapshot, named []string) map[blobID]string {
	protected := map[blobID]string{}
	newest, newestOfKind := map[string]bool{}, map[string]bool{}
	for i := range found {
		s := &found[i]
		kind := kindOf(s.Tags)
		directory := snapshotGroupKey(s, []string{"host", "paths"})
		of := directory + "\x00" + string(kind)
		switch {
		case slices.Contains(named, s.id.String()):
			protected[s.id] = "protected"
		case !newest[directory]:
			protected[s.id] = "the newest"
		case kind != "" && !newestOfKind[of]:
			protected[s.id] = "the newest " + string(kind) + " one"
		}
		newest[directory], newestOfKind[of] = true, true
	}
	return protected
}

// namedGroup is the group of snapshots that were named one by one.
func (r *Repository) namedGroup(ctx context.Context, options *ForgetOptions, protected map[blobID]string) (ForgetGroup, error) {
	group := ForgetGroup{Keep: []KeptSnapshot{}, Remove: []Info{}}
	for _, name := range options.Snapshots {
		s, err := r.resolveSnapshot(ctx, name)
		if err != nil {
			return group, err
		}
		switch why := protected[s.id]; {
		case why == "":
		case options.LeaveProtected:
			group.Keep = append(group.Keep, KeptSnapshot{Info: s.info(), Reasons: []string{why}})
			continue
		default:
			return group, fmt.Errorf("snapshot %s is %s of its host and paths: %w", s.id.short(), why, ErrProtected)
		}
		if info := s.info(); !slices.ContainsFunc(group.Remove, func(other Info) bool { return other.ID == info.ID }) {
			group.Remove = append(group.Remove, info)
		}
	}
	return group, nil
}

// snapshotGroup is a group of snapshots, the newest first.
type snapshotGroup struct {
	key       string
	snapshots []storedSnapshot
}

func groupSnapshots(found []storedSnapshot, options *ForgetOptions) []*snapshotGroup {
	byKey := map[string]*snapshotGroup{}
	var groups []*snapshotGroup
	for i := range found {
		s := &found[i]
		if !options.considers(s) {
			continue
		}
		key := snapshotGroupKey(s, options.GroupBy)
		if byKey[key] == nil {
			byKey[key] = &snapshotGroup{key: key}
			groups = append(groups, byKey[key])
		}
		byKey[key].snapshots = append(byKey[key].snapshots, *s)
	}
	slices.SortFunc(groups, func(a, b *snapshotGroup) int { return cmp.Compare(a.key, b.key) })
	return groups
}

func (o *ForgetOptions) considers(s *storedSnapshot) bool {
	if len(o.Hosts) > 0 && !slices.Contains(o.Hosts, s.Hostname) {
		return false
	}
	if slices.ContainsFunc(o.Paths, func(path string) bool { return !slices.Contains(s.Paths, path) }) {
		return false
	}
	return len(o.Tags) == 0 || slices.ContainsFunc(o.Tags, s.hasTags)
}

func snapshotGroupKey(s *storedSnapshot, fields []string) string {
	var parts []string
	for _, field := range fields {
		switch field {
		case "host":
			parts = append(parts, s.Hostname)
		case "paths":
			parts = append(parts, strings.Join(slices.Sorted(slices.Values(s.Paths)), "\x01"))
		case "tags":
			parts = append(parts, strings.Join(slices.Sorted(slices.Values(s.Tags)), "\x01"))
		}
	}
	return strings.Join(parts, "\x00")
}

func (g *snapshotGroup) describe(fields []string) ForgetGroup {
	group := ForgetGroup{Keep: []KeptSnapshot{}, Remove: []Info{}}
	for _, field := range fields {
		switch first := &g.snapshots[0]; field {
		case "host":
			group.Host = first.Hostname
		case "paths":
			group.Paths = first.Paths
		case "tags":
			group.Tags = first.Tags
		}
	}
	return group
}
