package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/urfave/cli/v2"
)

// verdict is the outcome of one check.
type verdict string

const (
	verdictOK      verdict = "ok"
	verdictWarn    verdict = "warning" // works, but a person should know
	verdictFail    verdict = "fault"
	verdictSkipped verdict = "skipped" // could not be looked at
)

// finding is one line of doctor's report. Its JSON is stable.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Detail  string  `json:"detail"`
	Mend    string  `json:"mend,omitempty"` // how to mend a fault
}

// report gathers findings; checks of it run at once.
type report struct {
	mu       sync.Mutex
	findings []finding
}

func (r *report) add(check string, verdict verdict, mend, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.findings = append(r.findings, finding{Check: check, Verdict: verdict, Detail: fmt.Sprintf(format, args...), Mend: mend})
}

// failed adds what an error says, with its mend.
func (r *report) failed(check string, err error) {
	f := asFailure(err)
	r.add(check, verdictFail, f.mend, "%v", f.what)
}

// checkWithin bounds one check: what hangs is a fault too.
const checkWithin = 20 * time.Second

func (p *program) doctorCommand() *cli.Command {
	return &cli.Command{
		Name: "doctor", Usage: "check the deployment from here, and name each fault with its mend",
		Description: "Stores are checked by writing, reading, listing and deleting a small object below doctor/. Nothing else is changed.\n" +
			"Exit code 1 when there is a fault.",
		Flags: []cli.Flag{
			outputFlag(),
			&cli.BoolFlag{Name: "read-only", Usage: "write nothing: stores are only listed"},
			&cli.StringFlag{Name: "engine", EnvVars: []string{"HOLDFAST_ENGINE"}, Usage: "container `ENGINE` to ask: auto, docker or process"},
		},
		Action: p.doctor,
	}
}

func (p *program) doctor(c *cli.Context) error {
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	if _, err := arguments(c); err != nil {
		return err
	}
	s, err := loadSettings(c)
	if err != nil {
		return err
	}
	d, err := findDeployment(s)
	if err != nil {
		return err
	}
	if c.IsSet("engine") {
		d.Engine = c.String("engine")
	}
	findings := p.diagnose(c, s, d, c.Bool("read-only"))
	if asJSON {
		if err := printJSON(p.stdout, findings); err != nil {
			return err
		}
	} else {
		renderFindings(p.stdout, findings)
	}
	faults := 0
	for _, found := range findings {
		if found.Verdict == verdictFail {
			faults++
		}
	}
	if err := c.Context.Err(); err != nil {
		return context.Cause(c.Context)
	}
	if faults > 0 {
		return fail(exitFailed, "%d of %d checks found a fault", faults, len(findings)).withMend("each fault above names its own")
	}
	return nil
}

// diagnose runs all checks, those of different things at once, and returns what they found in a fixed order.
func (p *program) diagnose(c *cli.Context, s settings, d deployment, readOnly bool) []finding {
	groups := []func(context.Context, *report){
		func(ctx context.Context, r *report) { checkTemporal(ctx, c, s, r) },
		func(_ context.Context, r *report) { checkKeys(c.Context, c, s, d, r) },
		func(ctx context.Context, r *report) { checkNames(ctx, d, r) },
		func(ctx context.Context, r *report) { p.checkStores(ctx, d, readOnly, r) },
		func(ctx context.Context, r *report) { checkEngine(ctx, d, r) },
	}
	reports := make([]report, len(groups))
	var all sync.WaitGroup
	for i, check := range groups {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(c.Context, checkWithin)
			defer cancel()
			check(ctx, &reports[i])
		})
	}
	all.Wait()
	var findings []finding
	for i := range reports {
		findings = append(findings, reports[i].findings...)
	}
	return listOf(findings)
}

func renderFindings(w io.Writer, findings []finding) {
	for _, found := range findings {
		writeAt(w, 9, string(found.Verdict), found.Check+": "+found.Detail)
		if found.Mend != "" {
			writeAt(w, 9, "", "  mend: "+found.Mend)
		}
	}
}

// inTime names a check that did not end in time instead of the context's bare error.
func inTime(ctx context.Context, err error) error {
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("no answer within %v: %w", checkWithin, err)
	}
	return err
}
