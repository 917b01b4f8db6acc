package workflows_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.temporal.io/sdk/activity"

	"holdfast/workspace"
)

// activityRegistry is a worker or the test environment.
type activityRegistry interface {
	RegisterActivityWithOptions(function any, options activity.RegisterOptions)
}

func (w *world) register(registry activityRegistry) {
	add := func(name string, function any) {
		registry.RegisterActivityWithOptions(function, activity.RegisterOptions{Name: name})
	}
	add(workspace.ActivityReadHead, func(context.Context, workspace.ReadHeadInput) (workspace.ReadHeadResult, error) {
		return do(w, workspace.ActivityReadHead, func() (workspace.ReadHeadResult, error) {
			if w.heads != nil {
				return *w.heads, nil
			}
			return w.readHead("gs://a", "file:///b"), nil
		})
	})
	add(workspace.ActivityPlace, func(_ context.Context, input workspace.PlaceInput) (workspace.PlaceResult, error) {
		return do(w, workspace.ActivityPlace, func() (workspace.PlaceResult, error) {
			nodes := slices.Sorted(maps.Keys(w.nodes))
			if slices.Contains(nodes, input.Prefer) {
				nodes = append([]string{input.Prefer}, nodes...)
			}
			for _, node := range nodes {
				info := w.nodes[node].Info
				if input.Shared && (!info.HasVolume(input.Volume) || !info.Guarded) {
					continue
				}
				excluded := strings.Contains(strings.Join(input.Exclude, " "), node)
				free := input.Only == "" && w.nodes[node].Cordoned == ""
				if !excluded && w.nodes[node].Phase == workspace.NodeReady && (free || input.Only == node) {
					result := workspace.PlaceResult{Node: node, Recipient: "age1" + node}
					if input.Shared {
						result.Volume = info.Volume.ID
					}
					return result, nil
				}
			}
			return workspace.PlaceResult{}, permanent(workspace.ErrorNoNode, "no node is left")
		})
	})
	add(workspace.ActivityLookAtNode, func(_ context.Context, input workspace.LookAtNodeInput) (workspace.LookAtNodeResult, error) {
		return do(w, workspace.ActivityLookAtNode, func() (workspace.LookAtNodeResult, error) {
			node, known := w.nodes[input.Node]
			look := workspace.LookAtNodeResult{Known: known, Node: node}
			if node.Loss != nil && node.Loss.Dead == "" {
				look.Brake = w.brake
			}
			return look, nil
		})
	})
	add(workspace.ActivitySeal, func(_ context.Context, input workspace.SealInput) (workspace.SealResult, error) {
		return do(w, workspace.ActivitySeal, func() (workspace.SealResult, error) {
			return workspace.SealResult{Password: []byte("sealed to " + input.Node)}, nil
		})
	})
	add(workspace.ActivityRecordInstance, func(_ context.Context, record workspace.InstanceRecord) error {
		_, err := do(w, workspace.ActivityRecordInstance, func() (any, error) {
			if there, ok := w.records[record.Token]; ok && there.Node != record.Node {
				return nil, permanent(workspace.ErrorConflict, "this token has been used")
			}
			w.records[record.Token] = record
			if record.Node != "" {
				w.placed[workspace.Placed{Node: record.Node, Token: record.Token}] = true
			}
			return nil, nil
		})
		return err
	})
	add(workspace.ActivityReleasePlacement, func(_ context.Context, input workspace.ReleasePlacementInput) error {
		_, err := do(w, workspace.ActivityReleasePlacement, func() (any, error) {
			delete(w.placed, workspace.Placed{Node: input.Node, Token: input.Token})
			return nil, nil
		})
		return err
	})
	add(workspace.ActivityRecordDeleted, func(context.Context, workspace.RecordDeletedInput) error {
		_, err := do(w, workspace.ActivityRecordDeleted, func() (any, error) { return nil, nil })
		return err
	})
	add(workspace.ActivityPrepareImage, func(_ context.Context, input workspace.PrepareImageInput) (workspace.PrepareImageResult, error) {
		return doOn(w, input.Target.Node, workspace.ActivityPrepareImage, func() (workspace.PrepareImageResult, error) {
			return workspace.PrepareImageResult{Reference: "image:" + input.Image}, nil
		})
	})
	add(workspace.ActivityPrepareContent, func(ctx context.Context, input workspace.PrepareContentInput) (workspace.PrepareContentResult, error) {
		w.unheard(ctx, workspace.ActivityPrepareContent)
		return doOn(w, input.Target.Node, workspace.ActivityPrepareContent, func() (workspace.PrepareContentResult, error) { return w.prepareContent(input) })
	})
	add(workspace.ActivityStartInstance, func(_ context.Context, input workspace.StartInstanceInput) (workspace.StartInstanceResult, error) {
		return doOn(w, input.Target.Node, workspace.ActivityStartInstance, func() (workspace.StartInstanceResult, error) {
			if input.Exclusive != (input.Target.Volume != "") {
				w.violated = append(w.violated, fmt.Sprintf("started as exclusive: %t, on volume %q", input.Exclusive, input.Target.Volume))
			}
			if input.Target.Volume != "" {
				w.alone(input.Target)
				if _, ok := w.content[lies(input.Target)]; !ok {
					return workspace.StartInstanceResult{}, permanent(workspace.ErrorContentMissing, "the node holds no such content")
				}
			}
			w.started[lies(input.Target)], w.runs[place(input.Target)] = true, true
			w.content[lies(input.Target)] += "+"
			w.newestContent = w.content[lies(input.Target)]
			return workspace.StartInstanceResult{Container: "container"}, nil
		})
	})
	add(workspace.ActivityFindInstance, func(_ context.Context, input workspace.FindInstanceInput) (workspace.FindInstanceResult, error) {
		return doOn(w, input.Target.Node, workspace.ActivityFindInstance, func() (workspace.FindInstanceResult, error) {
			if _, ok := w.content[lies(input.Target)]; !ok {
				return workspace.FindInstanceResult{}, permanent(workspace.ErrorContentMissing, "the node holds no such content")
			}
			return workspace.FindInstanceResult{Runs: w.runs[place(input.Target)]}, nil
		})
	})
	add(workspace.ActivityLookAtUse, func(ctx context.Context, input workspace.LookAtUseInput) (workspace.LookAtUseResult, error) {
		w.unheard(ctx, workspace.ActivityLookAtUse)
		return doOn(w, input.Target.Node, workspace.ActivityLookAtUse, func() (workspace.LookAtUseResult, error) {
			if w.use != nil {
				return w.use(), nil
			}
			return workspace.LookAtUseResult{QuietMillis: (1000 * time.Hour).Milliseconds(), Use: "a shell ended"}, nil
		})
	})
	add(workspace.ActivityStopInstance, func(_ context.Context, input workspace.StopInstanceInput) (workspace.StopInstanceResult, error) {
		w.noteHooks(input.PreStop, nil)
		return doOn(w, input.Target.Node, workspace.ActivityStopInstance, func() (workspace.StopInstanceResult, error) {
			w.runs[place(input.Target)] = false
			return workspace.StopInstanceResult{Hooks: w.hooksDone(input.PreStop)}, nil
		})
	})
	add(workspace.ActivityBackup, func(ctx context.Context, input workspace.BackupInput) (workspace.BackupResult, error) {
		w.unheard(ctx, workspace.ActivityBackup)
		w.noteHooks(nil, input.PreSnapshot)
		return doOn(w, input.Target.Node, workspace.ActivityBackup, func() (workspace.BackupResult, error) {
			w.next++
			id := fmt.Sprintf("%064d", w.next)
			held, ok := w.content[lies(input.Target)]
			if !ok {
				return workspace.BackupResult{}, permanent(workspace.ErrorContentMissing, "no content")
			}
			if input.Kind == "final" {
				w.runs[place(input.Target)] = false
			}
			if input.UnlessStatDigest == "digest of "+held {
				w.unchanged++
				return workspace.BackupResult{Unchanged: true, Time: time.Unix(1000, 0).UTC(), Hooks: w.hooksDone(input.PreSnapshot, input.PostSnapshot)}, nil
			}
			w.versions[id], w.kinds[id], w.backups[id] = held, input.Kind, input
			taken := time.Unix(1000, 0).UTC()
			if w.clock != nil {
				taken = w.clock()
			}
			return workspace.BackupResult{
				Backup: workspace.Backup{Snapshot: id, Files: 1, Omitted: w.omitted}, Time: taken, StatDigest: "digest of " + held, Unsettled: w.unsettled,
				Hooks: w.hooksDone(input.PreSnapshot, input.PostSnapshot),
			}, nil
		})
	})
	add(workspace.ActivityVerify, func(ctx context.Context, input workspace.VerifyInput) (workspace.VerifyResult, error) {
		w.unheard(ctx, workspace.ActivityVerify)
		return doOn(w, input.Target.Node, workspace.ActivityVerify, func() (workspace.VerifyResult, error) {
			return workspace.VerifyResult{Whole: []string{"gs://a"}, Owed: w.owed}, nil
		})
	})
	add(workspace.ActivityCommit, func(ctx context.Context, input workspace.CommitInput) error {
		w.unheard(ctx, workspace.ActivityCommit)
		_, err := doOn(w, input.Target.Node, workspace.ActivityCommit, func() (any, error) {
			// What a snapshot says of its commit is where a retention looks for it.
			if made, here := w.backups[input.Commit.Snapshot]; here && (made.Sequence != input.Commit.Sequence || made.Timed != input.Commit.Timed) {
				w.violated = append(w.violated, fmt.Sprintf("the snapshot of commit %d.%d says %d, timed %t", input.Commit.Token, input.Commit.Sequence, made.Sequence, made.Timed))
			}
			return nil, w.commit(input.Commit)
		})
		return err
	})
	add(workspace.ActivityRepair, func(ctx context.Context, input workspace.RepairInput) (workspace.RepairResult, error) {
		w.unheard(ctx, workspace.ActivityRepair)
		return doOn(w, input.Target.Node, workspace.ActivityRepair, func() (workspace.RepairResult, error) {
			w.owed = nil
			return workspace.RepairResult{}, nil
		})
	})
	add(workspace.ActivityForget, func(ctx context.Context, input workspace.ForgetInput) (workspace.ForgetResult, error) {
		w.unheard(ctx, workspace.ActivityForget)
		return doOn(w, input.Target.Node, workspace.ActivityForget, func() (workspace.ForgetResult, error) {
			w.forgets = append(w.forgets, input)
			return workspace.ForgetResult{Forgotten: 7, Kept: 5}, nil
		})
	})
	add(workspace.ActivityPrune, func(ctx context.Context, input workspace.PruneInput) (workspace.PruneResult, error) {
		w.unheard(ctx, workspace.ActivityPrune)
		return doOn(w, input.Target.Node, workspace.ActivityPrune, func() (workspace.PruneResult, error) {
			w.prunes = append(w.prunes, input)
			return workspace.PruneResult{Bytes: 1 << 20}, nil
		})
	})
	add(workspace.ActivityRemoveInstance, func(_ context.Context, input workspace.RemoveInstanceInput) error {
		_, err := doOn(w, input.Target.Node, workspace.ActivityRemoveInstance, func() (any, error) {
			held, ok := w.content[lies(input.Target)]
			if ok && w.versions[input.Snapshot] != held {
				w.violated = append(w.violated, fmt.Sprintf("removal of %q asked with a snapshot of %q", held, w.versions[input.Snapshot]))
			}
			if ok && !input.Recovered && !w.committed(input.Snapshot) {
				w.violated = append(w.violated, "removal asked without a commit")
			}
			if ok && input.Recovered && (w.kinds[input.Snapshot] != "recovered" || w.newest() <= input.Target.Token || input.StatDigest != "digest of "+held) {
				w.violated = append(w.violated, fmt.Sprintf("removal of instance %d asked with a %s snapshot while %d is the newest", input.Target.Token, w.kinds[input.Snapshot], w.newest()))
			}
			if ok && w.runs[place(input.Target)] {
				w.violated = append(w.violated, "removal of what runs")
			}
			delete(w.content, lies(input.Target))
			return nil, nil
		})
		return err
	})
	add(workspace.ActivityDiscardInstance, func(_ context.Context, input workspace.DiscardInstanceInput) error {
		_, err := doOn(w, input.Target.Node, workspace.ActivityDiscardInstance, func() (any, error) {
			if w.started[lies(input.Target)] && input.DiscardData == "" {
				return nil, permanent(workspace.ErrorRefused, "it may have run")
			}
			delete(w.content, lies(input.Target))
			return nil, nil
		})
		return err
	})
}

func (w *world) prepareContent(input workspace.PrepareContentInput) (workspace.PrepareContentResult, error) {
	at := lies(input.Target)
	if _, ok := w.content[at]; ok {
		return workspace.PrepareContentResult{}, nil
	}
	if input.Adopt != 0 {
		for token := input.Target.Token - 1; token >= input.Adopt; token-- {
			before := input.Target
			before.Token = token
			older := lies(before)
			if held, ok := w.content[older]; ok {
				if input.Target.Volume != "" {
					w.alone(input.Target)
				}
				delete(w.content, older)
				w.content[at] = held
				w.started[at] = w.started[older]
				return workspace.PrepareContentResult{}, nil
			}
		}
		return workspace.PrepareContentResult{}, permanent(workspace.ErrorContentMissing, "nothing to adopt")
	}
	if input.Snapshot != "" {
		held, ok := w.versions[input.Snapshot]
		if !ok {
			return workspace.PrepareContentResult{}, permanent(workspace.ErrorSnapshotMissing, "no such snapshot")
		}
		w.content[at] = held
		return workspace.PrepareContentResult{Restored: &workspace.Restore{Snapshot: input.Snapshot}}, nil
	}
	w.content[at] = "first"
	return workspace.PrepareContentResult{}, nil
}

func (w *world) newest() uint64 {
	var newest uint64
	for token := range w.records {
		newest = max(newest, token)
	}
	return newest
}

func (w *world) commit(commit workspace.Commit) error {
	if commit.Token != w.newest() {
		return permanent(workspace.ErrorStaleToken, "a newer instance has been recorded")
	}
	for _, there := range w.commits {
		if there.Token == commit.Token && there.Sequence == commit.Sequence {
			if there.Snapshot != commit.Snapshot {
				return permanent(workspace.ErrorConflict, "another commit is there")
			}
			return nil
		}
	}
	w.commits = append(w.commits, commit)
	return nil
}

func (w *world) committed(snapshot string) bool {
	for _, commit := range w.commits {
		if commit.Snapshot == snapshot {
			return true
		}
	}
	return false
}

func (w *world) readHead(providers ...string) workspace.ReadHeadResult {
	answer := workspace.ProviderHead{Token: w.newest()}
	for i := range w.commits {
		if w.commits[i].Token == answer.Token && w.commits[i].Newer(answer.Head) {
			answer.Head = &w.commits[i]
		}
	}
	if answer.Head == nil {
		answer.Base = w.records[answer.Token].Base
	}
	var result workspace.ReadHeadResult
	for _, provider := range providers {
		answer.Provider = provider
		result.Providers = append(result.Providers, answer)
	}
	return result
}
