package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
)

// stepLimit bounds one line of the story.
const stepLimit = 15 * time.Second

// story prints what happens, one line a step, with the time since the start.
type story struct {
	out   io.Writer
	begun time.Time
	steps int
}

// step does one thing and prints what came of it; an error is what should have been true and is not.
func (s *story) step(ctx context.Context, title string, do func(ctx context.Context) (string, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, stepLimit, fmt.Errorf("not within %s", stepLimit))
	defer cancel()
	said, err := do(ctx)
	if err != nil {
		s.line("NO", title, err.Error())
		return fmt.Errorf("%s: %w", title, err)
	}
	s.steps++
	s.line("ok", title, said)
	return nil
}

// line prints a line; further lines of text stand below the first.
func (s *story) line(mark, title, text string) {
	const indent = "                                     "
	fmt.Fprintf(s.out, "%7.3fs  %s  %-22s %s\n", time.Since(s.begun).Seconds(), mark, title,
		strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+indent))
}
