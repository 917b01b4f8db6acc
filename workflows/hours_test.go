package workflows_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"holdfast/workspace"
)

const office = "Mon-Fri 08:00-20:00 Europe/Berlin"

// officeWorld is a workspace with working hours that is started on a Monday at 09:00 in Berlin: eleven hours before they end.
func officeWorld(t *testing.T, use func(ran time.Duration) workspace.LookAtUseResult) *world {
	return hoursWorld(t, time.Date(2026, 11, 30, 8, 0, 0, 0, time.UTC), use)
}

func hoursWorld(t *testing.T, began time.Time, use func(ran time.Duration) workspace.LookAtUseResult) *world {
	w := newWorld(t)
	w.clock = func() time.Time { return w.environment.Now() }
	w.environment.SetStartTime(began)
	if use != nil {
		w.use = func() workspace.LookAtUseResult { return use(w.environment.Now().Sub(began)) }
	}
	request := start()
	request.Spec.Stop.Hours = office
	w.ask(0, workspace.UpdateStart, request)
	return w
}

// At the end of its hours a workspace that is not used is stopped, a quarter of an hour after its person was warned of it, and is not
// started again by itself.
func TestHoursEnd(t *testing.T) {
	w := officeWorld(t, nil)
	w.work(time.Hour)
	before, warned, stopped, next := w.look(10*time.Hour+44*time.Minute), w.look(10*time.Hour+46*time.Minute), w.look(11*time.Hour+time.Minute), w.look(25*time.Hour)
	asked := 0
	w.at(10*time.Hour+59*time.Minute, func() { asked = w.called(workspace.ActivityLookAtUse) })
	w.run(26 * time.Hour)
	require.Empty(t, before.Watch.WarnedOf)
	require.Equal(t, workspace.StopHours, warned.Watch.WarnedOf)
	require.Equal(t, workspace.Running, warned.Phase)
	require.Zero(t, asked, "they end whether it is used or not")
	require.Equal(t, workspace.Stopped, stopped.Phase)
	require.Contains(t, stopped.Reason, "it was outside of its hours ("+office+") and not used for 15m: backed up as snapshot")
	require.Equal(t, "final", stopped.Head.Kind)
	require.Equal(t, "first+.", w.versions[stopped.Head.Snapshot])
	require.Equal(t, 1, w.called(workspace.ActivityLookAtUse))
	require.Equal(t, workspace.Stopped, next.Phase)
}

// One that is used is not cut off. It stays warned of, is asked about again, and is stopped once it has been quiet.
func TestHoursOfAUsedWorkspace(t *testing.T) {
	w := officeWorld(t, func(ran time.Duration) workspace.LookAtUseResult {
		if ran < 13*time.Hour {
			return usedNow
		}
		return quietSince(ran, 13*time.Hour)
	})
	used, on, stopped := w.look(11*time.Hour+time.Minute), w.look(13*time.Hour), w.look(13*time.Hour+31*time.Minute)
	w.run(14 * time.Hour)
	require.Equal(t, workspace.Running, used.Phase)
	require.Equal(t, workspace.StopHours, used.Watch.WarnedOf)
	require.Contains(t, used.Watch.Use, "97 %")
	require.Equal(t, workspace.Running, on.Phase)
	require.True(t, ahead(on, on.Watch.Asked).Warned)
	require.Equal(t, workspace.Stopped, stopped.Phase)
	require.LessOrEqual(t, w.called(workspace.ActivityLookAtUse), 12)
}

// Who works through the night goes on in the morning, unwarned, and the next evening is as any other.
func TestHoursOfAWorkspaceThatIsUsedAllNight(t *testing.T) {
	w := officeWorld(t, func(ran time.Duration) workspace.LookAtUseResult {
		if ran < 30*time.Hour {
			return usedNow
		}
		return quietSince(ran, 30*time.Hour)
	})
	morning, evening, stopped := w.look(23*time.Hour+time.Minute), w.look(34*time.Hour+46*time.Minute), w.look(35*time.Hour+time.Minute)
	asked := 0
	w.at(23*time.Hour, func() { asked = w.called(workspace.ActivityLookAtUse) })
	w.run(36 * time.Hour)
	require.Equal(t, workspace.Running, morning.Phase)
	require.Empty(t, morning.Watch.WarnedOf)
	require.LessOrEqual(t, asked, 12*4+1)
	require.Greater(t, asked, 40)
	require.Equal(t, workspace.StopHours, evening.Watch.WarnedOf)
	require.Equal(t, workspace.Running, evening.Phase)
	require.Equal(t, workspace.Stopped, stopped.Phase)
	require.Equal(t, asked+1, w.called(workspace.ActivityLookAtUse), "nobody is asked during the day")
}

// A start outside of its hours is a person's word: it is warned of at once, and stopped once it is quiet.
func TestStartOutsideOfHours(t *testing.T) {
	w := hoursWorld(t, time.Date(2026, 11, 28, 10, 0, 0, 0, time.UTC), func(ran time.Duration) workspace.LookAtUseResult {
		return quietSince(ran, 10*time.Minute)
	})
	warned, on, stopped := w.look(time.Minute), w.look(24*time.Minute), w.look(26*time.Minute)
	w.run(time.Hour)
	require.Equal(t, workspace.StopHours, warned.Watch.WarnedOf)
	require.Equal(t, workspace.Running, on.Phase)
	require.Equal(t, workspace.Stopped, stopped.Phase)
}

// A keep puts the end off; one into the next day's hours puts it off to their end.
func TestKeepOutsideOfHours(t *testing.T) {
	w := officeWorld(t, nil)
	w.ask(10*time.Hour+50*time.Minute, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 2 * 3600})
	w.ask(12*time.Hour, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 20 * 3600})
	kept, long, evening, stopped := w.look(11*time.Hour), w.look(32*time.Hour+time.Minute), w.look(34*time.Hour+50*time.Minute), w.look(35*time.Hour+time.Minute)
	w.ask(36*time.Hour, workspace.UpdateStart, workspace.StartRequest{Subject: "ada"})
	w.ask(36*time.Hour+time.Minute, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada", Seconds: 30 * 3600})
	w.ask(36*time.Hour+30*time.Minute, workspace.UpdateKeep, workspace.KeepRequest{Subject: "ada"})
	again, off := w.look(36*time.Hour+29*time.Minute), w.look(36*time.Hour+46*time.Minute)
	w.run(37 * time.Hour)
	require.Empty(t, kept.Watch.WarnedOf)
	require.Equal(t, workspace.Running, long.Phase)
	require.Empty(t, long.Watch.WarnedOf)
	require.Equal(t, workspace.StopHours, evening.Watch.WarnedOf)
	require.Equal(t, workspace.Stopped, stopped.Phase)
	require.Equal(t, workspace.Running, again.Phase)
	require.Equal(t, workspace.Stopped, off.Phase, "what was put off is taken back")
}

// A node that does not answer does not say that it is idle, at night neither; once it answers, the warning comes again first.
func TestSilentNodeOutsideOfHours(t *testing.T) {
	w := officeWorld(t, nil)
	w.setting(10*time.Hour, func() {
		w.fail = func(activity string, _ int) error {
			if activity == workspace.ActivityLookAtUse {
				return errors.New("the engine does not answer")
			}
			return nil
		}
	})
	unknown := w.look(14 * time.Hour)
	w.setting(14*time.Hour, func() { w.fail = nil })
	warned, stopped := w.look(14*time.Hour+7*time.Minute), w.look(14*time.Hour+22*time.Minute)
	w.run(15 * time.Hour)
	require.Equal(t, workspace.Running, unknown.Phase)
	require.Empty(t, unknown.Watch.WarnedOf)
	require.Contains(t, ahead(unknown, unknown.Watch.NotAsked).Unknown, "the engine does not answer")
	require.Equal(t, workspace.StopHours, warned.Watch.WarnedOf)
	require.Equal(t, workspace.Running, warned.Phase)
	require.Equal(t, workspace.Stopped, stopped.Phase)
}

// A worker that does not know the time zone stops nothing, and says so.
func TestHoursThatCannotBeWorkedOut(t *testing.T) {
	w := newWorld(t)
	request := start()
	request.Spec.Stop.Hours = "Mon 08:00-20:00 Europe/Atlan"
	w.ask(0, workspace.UpdateStart, request)
	last := w.look(240*time.Hour - time.Minute)
	w.run(240 * time.Hour)
	require.Equal(t, workspace.Running, last.Phase)
	require.Contains(t, last.Watch.Outside.Problem, "Europe/Atlan")
	require.Zero(t, w.called(workspace.ActivityLookAtUse))
}
