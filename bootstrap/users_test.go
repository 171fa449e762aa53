package bootstrap

import (
	"errors"
	"os/user"
	"strconv"
	"testing"
)

func TestLookupUser(t *testing.T) {
	m := newMachine(t, map[string]string{
		"/etc/passwd": "#comment\nbroken\nistio-proxy:x:995:994::/:/bin/sh\n996:x:1:1::/:/bin/sh\nbad:x:-1:0::/:\nnever:x:4294967295:0::/:\ntwice:x:7:8::/:\ntwice:x:9:9::/:\n",
		"/etc/group":  "istio-proxy:x:994:\ncut:x\nstaff:x:50:a,b\n",
	})
	empty := machine{t: t, root: t.TempDir()}
	for _, tt := range []struct {
		name, root, user string
		uid, gid         uint32
		unknown          bool
	}{
		{"by name", m.root, "istio-proxy", 995, 994, false},
		{"by uid, with the group of that user", m.root, "995", 995, 994, false},
		{"a uid of nobody is its own group", m.root, "70000", 70000, 70000, false},
		{"a name in digits comes before the uid", m.root, "996", 1, 1, false},
		{"the first line of a name counts", m.root, "twice", 7, 8, false},
		{"a user of the machine when root has the file but not the user", m.root, "root", 0, 0, false},
		{"a user of the machine when root has no file", empty.root, "root", 0, 0, false},
		{"nobody's name", m.root, "nobody-has-this", 0, 0, true},
		{"an id that is none", m.root, "bad", 0, 0, true},
		{"the id that means no id", m.root, "never", 0, 0, true},
		{"nothing", m.root, "", 0, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			uid, gid, err := LookupUser(tt.root, tt.user)
			var unknown *UnknownUserError
			if errors.As(err, &unknown) != tt.unknown || tt.unknown && unknown.Name != tt.user {
				t.Fatalf("error %v", err)
			}
			if uid != tt.uid || gid != tt.gid {
				t.Errorf("ids %d, %d; want %d, %d", uid, gid, tt.uid, tt.gid)
			}
		})
	}
	for _, tt := range []struct {
		name, group string
		gid         uint32
		unknown     bool
	}{
		{"by name", "staff", 50, false},
		{"by gid", "50", 50, false},
		{"a gid of nobody", "4000", 4000, false},
		{"a group of the machine", "root", 0, false},
		{"a line cut short", "cut", 0, true},
	} {
		t.Run("group "+tt.name, func(t *testing.T) {
			gid, err := LookupGroup(m.root, tt.group)
			var unknown *UnknownGroupError
			if errors.As(err, &unknown) != tt.unknown {
				t.Fatalf("error %v", err)
			}
			if gid != tt.gid {
				t.Errorf("gid %d, want %d", gid, tt.gid)
			}
		})
	}
}

// TestLookupUserAgreesWithTheSystem looks the current user up in both ways.
func TestLookupUserAgreesWithTheSystem(t *testing.T) {
	current, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	uid, gid, err := LookupUser("/", current.Username)
	if err != nil {
		t.Skipf("%s is in no file (a directory service has it)", current.Username)
	}
	if strconv.Itoa(int(uid)) != current.Uid || strconv.Itoa(int(gid)) != current.Gid {
		t.Errorf("ids %d, %d; the system says %s, %s", uid, gid, current.Uid, current.Gid)
	}
}
