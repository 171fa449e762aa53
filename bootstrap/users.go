package bootstrap

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// UnknownUserError means that no passwd file has the user.
type UnknownUserError struct{ Name string }

func (e *UnknownUserError) Error() string { return fmt.Sprintf("no user %q on this machine", e.Name) }

// UnknownGroupError means that no group file has the group.
type UnknownGroupError struct{ Name string }

func (e *UnknownGroupError) Error() string { return fmt.Sprintf("no group %q on this machine", e.Name) }

// LookupUser returns uid and primary gid of a user, by name or uid, from passwd below root. When that folder has no such file or
// user, the machine's own passwd is asked, so that a folder of settings alone is enough. A uid that no file has is its own gid.
// The error is an *UnknownUserError when nobody has the name.
func LookupUser(root, name string) (uid, gid uint32, err error) {
	for _, file := range accountFiles(root, "/etc/passwd") {
		if fields := accountLine(file, name, 2, 4); fields != nil {
			uid, okUID := parseID(fields[2])
			gid, okGID := parseID(fields[3])
			if okUID && okGID {
				return uid, gid, nil
			}
		}
	}
	if id, ok := parseID(name); ok {
		return id, id, nil
	}
	return 0, 0, &UnknownUserError{Name: name}
}

// LookupGroup returns the gid of a group, by name or gid, looking where LookupUser does. The error is an *UnknownGroupError.
func LookupGroup(root, name string) (gid uint32, err error) {
	for _, file := range accountFiles(root, "/etc/group") {
		if fields := accountLine(file, name, 2, 3); fields != nil {
			if gid, ok := parseID(fields[2]); ok {
				return gid, nil
			}
		}
	}
	if id, ok := parseID(name); ok {
		return id, nil
	}
	return 0, &UnknownGroupError{Name: name}
}

func accountFiles(root, path string) []string {
	if own := under(root, path); own != path {
		return []string{own, path}
	}
	return []string{path}
}

// accountLine returns the fields of the first line whose name, or whose number in field id, is name; nil when there is none.
func accountLine(file, name string, id, least int) []string {
	src, _, err := readFile(file)
	if err != nil || name == "" {
		return nil
	}
	_, numErr := strconv.ParseUint(name, 10, 32)
	lines := bufio.NewScanner(bytes.NewReader(src))
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) >= least && (fields[0] == name || numErr == nil && fields[id] == name) {
			return fields
		}
	}
	return nil
}
