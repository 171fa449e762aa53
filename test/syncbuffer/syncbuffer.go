// Package syncbuffer is a buffer that a test reads while others write to it: the log of a daemon that runs, the output of a process.
package syncbuffer

import (
	"bytes"
	"sync"
)

// A Buffer keeps what is written to it. The zero value is empty and ready to use. Safe for concurrent use.
type Buffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

// Write never fails.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String is all that has been written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
