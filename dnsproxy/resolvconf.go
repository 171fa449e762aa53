package dnsproxy

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// resolvConf is what counts of a resolv.conf(5).
type resolvConf struct {
	servers  []netip.AddrPort // in order, each once
	search   [][]byte         // keys of the search list, in order
	timeout  time.Duration    // "timeout:n"; 0: not set
	attempts int              // "attempts:n"; 0: not set
	rotate   bool
	useTCP   bool // "use-vc"
}

const (
	maxServers  = 8  // glibc uses 3; more cost nothing here
	maxTimeout  = 30 // glibc RES_MAXRETRANS, seconds
	maxAttempts = 5  // glibc RES_MAXRETRY
)

// parseResolvConf reads a resolv.conf as glibc's resolver does: what it does not know or cannot use is skipped, a later
// search or domain line replaces the former. It never fails; a file without usable servers has none.
func parseResolvConf(text string) resolvConf {
	var c resolvConf
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(fields[1])
			if err != nil {
				continue
			}
			server := netip.AddrPortFrom(addr.Unmap(), 53)
			if len(c.servers) < maxServers && !slices.Contains(c.servers, server) {
				c.servers = append(c.servers, server)
			}
		case "domain":
			c.search = searchKeys(fields[1:2])
		case "search":
			c.search = searchKeys(fields[1:])
		case "options":
			c.options(fields[1:])
		}
	}
	return c
}

func searchKeys(names []string) (keys [][]byte) {
	for _, name := range names {
		// "." is a search list's way to say: the name as it is
		if key, err := appendKey(nil, name); err == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

func (c *resolvConf) options(fields []string) {
	for _, field := range fields {
		key, value, _ := strings.Cut(field, ":")
		n, err := strconv.Atoi(value)
		switch {
		case key == "rotate":
			c.rotate = true
		case key == "use-vc":
			c.useTCP = true
		case key == "timeout" && err == nil && n > 0:
			c.timeout = time.Duration(min(n, maxTimeout)) * time.Second
		case key == "attempts" && err == nil && n > 0:
			c.attempts = min(n, maxAttempts)
		}
	}
}

// resolvWatch follows a resolv.conf.
type resolvWatch struct {
	path string
	// uplinks is the file whose servers take the place of systemd-resolved's stub; empty: nothing does.
	uplinks string
	log     *slog.Logger
}

// stubs are where systemd-resolved listens: DNSStubListener= in resolved.conf(5).
var stubs = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.53:53"), netip.MustParseAddrPort("127.0.0.54:53")}

// withoutStub is a resolv.conf in which the servers of another one stand in the place of systemd-resolved's stub. It is pure.
func withoutStub(text string, uplinks func() (string, error)) (string, error) {
	named := false
	var out strings.Builder
	for line := range strings.Lines(text) {
		if slices.ContainsFunc(parseResolvConf(line).servers, func(s netip.AddrPort) bool { return slices.Contains(stubs, s) }) {
			named = true
			continue
		}
		out.WriteString(line)
	}
	if !named {
		return text, nil
	}
	behind, err := uplinks()
	if err != nil {
		return "", err
	}
	out.WriteByte('\n')
	for _, s := range parseResolvConf(behind).servers {
		if !slices.Contains(stubs, s) {
			fmt.Fprintf(&out, "nameserver %s\n", s.Addr())
		}
	}
	return out.String(), nil
}

// rereadEvery is the fallback where the file system tells nothing of changes (overlay, NFS).
const rereadEvery = 30 * time.Second

// read returns the file's content.
func (w *resolvWatch) read() (string, error) {
	text, err := os.ReadFile(w.path)
	if err != nil {
		return "", fmt.Errorf("read resolvers: %w", err)
	}
	if w.uplinks == "" {
		return string(text), nil
	}
	return withoutStub(string(text), func() (string, error) {
		behind, err := os.ReadFile(w.uplinks)
		if err != nil {
			return "", fmt.Errorf("read the resolvers behind systemd-resolved: %w", err)
		}
		return string(behind), nil
	})
}

// run calls changed with the content each time it differs from last, until ctx ends. The folders of the file and of every
// symbolic link on the way to it are watched, not the file: it is replaced by renaming, and so is what a link points to
// (../run/systemd/resolve/stub-resolv.conf).
func (w *resolvWatch) run(ctx context.Context, last string, changed func(text string)) {
	var events chan fsnotify.Event
	var errs chan error // of watches that ended by themselves, overflows: reasons to look, like events
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("resolv.conf is read on a timer only", "every", rereadEvery, "cause", err)
	} else {
		defer watcher.Close()
		events, errs = watcher.Events, watcher.Errors
	}
	ticker := time.NewTicker(rereadEvery)
	defer ticker.Stop()
	watched := map[string]bool{}
	for {
		if watcher != nil {
			watched = w.follow(watcher, watched)
		}
		// read after the watches stand: a change in between is seen either way
		if text, err := w.read(); err == nil && text != last {
			last = text
			changed(text)
		}
		select {
		case <-ctx.Done():
			return
		case _, ok := <-events:
			if !ok {
				events = nil
			}
			drain(events)
		case _, ok := <-errs:
			if !ok {
				errs = nil
			}
		case <-ticker.C:
		}
	}
}

// drain takes what else has been reported already: one read answers all of it.
func drain(events <-chan fsnotify.Event) {
	for {
		select {
		case _, ok := <-events:
			if !ok {
				return
			}
		default:
			return
		}
	}
}

// follow makes watcher watch exactly the folders on the files' way now; where one is missing, the nearest above it, in which it will appear.
func (w *resolvWatch) follow(watcher *fsnotify.Watcher, watched map[string]bool) map[string]bool {
	wanted := map[string]bool{}
	dirs := linkFolders(w.path)
	if w.uplinks != "" {
		dirs = append(dirs, linkFolders(w.uplinks)...)
	}
	for _, dir := range dirs {
		// each time anew: the folder of this name may be another one now, and a watch ends with its folder
		const tries = 5 // it may come between the looks
		for range tries {
			if watcher.Add(dir) == nil {
				break
			}
			above := nearestFolder(filepath.Dir(dir))
			wanted[above] = watcher.Add(above) == nil || wanted[above]
			if nearestFolder(dir) == above {
				break
			}
		}
		wanted[dir] = true
	}
	for dir := range watched {
		if !wanted[dir] {
			_ = watcher.Remove(dir) // gone with its folder, or still there: neither matters
		}
	}
	return wanted
}

// nearestFolder is dir, or the nearest folder above it that exists.
func nearestFolder(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || filepath.Dir(dir) == dir {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// linkFolders lists the folders that hold path and each link it leads through.
func linkFolders(path string) (dirs []string) {
	const maxLinks = 10
	for range maxLinks {
		dirs = append(dirs, filepath.Dir(path))
		target, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		path = target
	}
	return dirs
}

// budget is the time a question may take upstream: nine tenths of the configured limit or of the client's own patience,
// which the same file's timeout tells, whichever is shorter.
func (c *resolvConf) budget(limit time.Duration) time.Duration {
	return min(limit, cmp.Or(c.timeout, limit)) * 9 / 10
}
