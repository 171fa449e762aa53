package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// Users of the machine. The daemon's must differ from the others': the capture rules exempt it by its owner.
const (
	proxyUID = 995  // istio-proxy, as Istio's package makes it
	userUID  = 1000 // whoever runs the application and asks for names
	uidsUsed = 1001 // 0 to 1000
)

// idRange is a line of /etc/subuid: ids that a user may use in its own namespaces.
type idRange struct{ first, count int }

// findRange returns the first range in the text of /etc/subuid or /etc/subgid that belongs to a user, by name or number,
// and is large enough for this demo (subuid(5)).
func findRange(text, user string, uid int) (idRange, bool) {
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) != 3 || fields[0] != user && fields[0] != strconv.Itoa(uid) {
			continue
		}
		first, err1 := strconv.Atoi(fields[1])
		count, err2 := strconv.Atoi(fields[2])
		if err1 == nil && err2 == nil && count >= uidsUsed-1 {
			return idRange{first, count}, true
		}
	}
	return idRange{}, false
}

// mapIDs gives process pid, which stands in a new user namespace without ids, root and the ids of r.
func mapIDs(tool string, pid, own int, r idRange) error {
	// inside-id outside-id count: root is the caller, all others come from the range.
	out, err := exec.Command(tool, strconv.Itoa(pid), "0", strconv.Itoa(own), "1", "1", strconv.Itoa(r.first), strconv.Itoa(uidsUsed-1)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// userNamespaceNeeds says what a user without root lacks for namespaces with several ids; empty means nothing.
func userNamespaceNeeds(user string, uid int) (uids, gids idRange, needs string) {
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return uids, gids, tool + " is not installed (Debian's package uidmap, Red Hat's shadow-utils)"
		}
	}
	for _, f := range []struct {
		path string
		into *idRange
	}{{"/etc/subuid", &uids}, {"/etc/subgid", &gids}} {
		text, _ := os.ReadFile(f.path) // a missing file gives nobody anything
		var ok bool
		if *f.into, ok = findRange(string(text), user, uid); !ok {
			return uids, gids, fmt.Sprintf("%s gives %s fewer than %d ids: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s", f.path, user, uidsUsed-1, user)
		}
	}
	return uids, gids, ""
}
