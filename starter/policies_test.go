package main

import "testing"

// Hours have spaces in them, and are kept as they are written everywhere.
func TestHoursOfAStart(t *testing.T) {
	fake := &fakeControl{}
	p := newTestProgram(t, fake)
	if code := p.run("start", "web", "--detach", "--hours", "mon-fri 08:00-20:00,Sat  10:00-14:00 Europe/Berlin"); code != exitDone {
		t.Fatalf("exit code %d: %s", code, p.errs.String())
	}
	if got, want := fake.starts[0].Spec.Stop.Hours, "Mon-Fri 08:00-20:00, Sat 10:00-14:00 Europe/Berlin"; got != want {
		t.Errorf("hours %q, want %q", got, want)
	}
}
