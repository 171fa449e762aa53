package netns

import (
	"net"
	"os"
	"testing"
)

// inode tells namespaces apart.
func inode(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink(threadNS())
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestNewMovesTheTestAndGivesTheThreadBack(t *testing.T) {
	before := inode(t)
	t.Run("inside", func(t *testing.T) {
		New(t)
		if got := inode(t); got == before {
			t.Errorf("the test is still in %s", got)
		}
		l, err := net.Listen("tcp", "127.0.0.1:80")
		if err != nil {
			t.Fatalf("lo is not usable: %v", err)
		}
		l.Close()
	})
	if got := inode(t); got != before {
		t.Errorf("after the subtest the thread is in %s, want %s", got, before)
	}
}

func TestDoRunsInTheOtherNamespaceOnly(t *testing.T) {
	here := New(t)
	other := Create(t)
	mine := inode(t)
	var theirs string
	if err := other.Do(func() error { theirs = inode(t); return nil }); err != nil {
		t.Fatal(err)
	}
	if theirs == mine {
		t.Errorf("Do ran in %s, where the test is", theirs)
	}
	if got := inode(t); got != mine {
		t.Errorf("Do moved the test to %s, want %s", got, mine)
	}
	var again string
	if err := here.Do(func() error { again = inode(t); return nil }); err != nil {
		t.Fatal(err)
	}
	if again != mine {
		t.Errorf("Do on the test's own namespace ran in %s, want %s", again, mine)
	}
}
