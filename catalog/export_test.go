package catalog

import "time"

// AnswerWithin changes how long one provider has for one answer.
func (c *Catalog) AnswerWithin(d time.Duration) { c.answerWithin = d }
