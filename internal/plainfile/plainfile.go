// Package plainfile reads files of folders where somebody else may put whatever it likes: commands that root runs read what the agent's user wrote, and
// the agent reads what an operator names.
//
// It owns that such a read ends, and takes no more memory than its caller expects. What a file means, and whether a link that leads to it is to be followed,
// is the caller's. No goroutines, no state. To match: nothing of Istio's.
package plainfile

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// Read returns the content of a regular file of at most most bytes, and what it is. Anything else at path (a pipe, a device, a folder, a longer file) is an
// error at once, and no wait. Links are followed.
func Read(path string, most int64) ([]byte, fs.FileInfo, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe without a writer would block
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is not a regular file", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, most+1)) // it may grow
	if err != nil {
		return nil, nil, err
	}
	if size := max(info.Size(), int64(len(b))); size > most {
		return nil, nil, fmt.Errorf("%s has %d bytes, expected at most %d", path, size, most)
	}
	return b, info, nil
}
