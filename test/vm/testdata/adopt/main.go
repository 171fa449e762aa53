// Command adopt does what wingman adopt does, and kills itself once the step of its argument is noted; for step "undo" it undoes. For "impatient" it undoes, with
// little time for pilot-agent, and is not killed.
package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"

	"wingman/agent/adopt"
)

func main() {
	until := adopt.Step(os.Args[1])
	o := adopt.Options{Root: "/", Say: func(s string) { fmt.Println(s) }, Timeout: 20 * time.Second, Program: "/usr/bin/wingman", Reached: func(s adopt.Step) {
		if s == until {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}}
	if until == "impatient" {
		o.Back = 3 * time.Second
		if err := adopt.Undo(context.Background(), o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	_, _, err := adopt.Adopt(context.Background(), o)
	if err == nil && until == adopt.StepUndo {
		err = adopt.Undo(context.Background(), o)
	}
	fmt.Fprintln(os.Stderr, "not reached:", err)
	os.Exit(1)
}
