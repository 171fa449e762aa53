package dnsproxy

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseResolvConf(t *testing.T) {
	addrs := func(list ...string) (out []netip.AddrPort) {
		for _, a := range list {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(a), 53))
		}
		return out
	}
	tests := []struct {
		name, text string
		want       resolvConf
	}{
		{"nothing", "", resolvConf{}},
		{"systemd-resolved's stub", "# This is /run/systemd/resolve/stub-resolv.conf\nnameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n",
			resolvConf{servers: addrs("127.0.0.53")}},
		{"servers keep their order, each once, both families, scopes", "nameserver 10.0.0.2\nnameserver 2001:db8::1\nnameserver fe80::1%eth0\nnameserver 10.0.0.2\nnameserver ::ffff:10.0.0.3\n",
			resolvConf{servers: addrs("10.0.0.2", "2001:db8::1", "fe80::1%eth0", "10.0.0.3")}},
		{"what is no address is skipped", "nameserver\nnameserver dns.example\nnameserver 10.0.0.300\nnameserver 10.0.0.2 # mine\n", resolvConf{servers: addrs("10.0.0.2")}},
		{"comments, also with a semicolon", ";nameserver 10.0.0.1\n#nameserver 10.0.0.2\n", resolvConf{}},
		{"the last search or domain line counts", "search a.example b.example\ndomain c.example\n", resolvConf{search: [][]byte{[]byte("\x01c\x07example")}}},
		{"a search list in odd case, with final dots and nonsense", "search Corp.EXAMPLE. bad..name . x\n",
			resolvConf{search: [][]byte{[]byte("\x04corp\x07example"), []byte("\x01x")}}},
		{"options, within glibc's limits", "options timeout:99 attempts:9 rotate ndots:5\noptions use-vc\n",
			resolvConf{timeout: 30 * time.Second, attempts: 5, rotate: true, useTCP: true}},
		{"options that make no sense", "options timeout: attempts:x timeout:-1 rotat :\n", resolvConf{}},
		{"no newline at the end, carriage returns, tabs", "nameserver\t10.0.0.1\r\noptions\ttimeout:2", resolvConf{servers: addrs("10.0.0.1"), timeout: 2 * time.Second}},
		{"more servers than anyone needs", strings.Repeat("nameserver 10.0.0.1\n", 3) + "nameserver 10.0.0.2\nnameserver 10.0.0.3\nnameserver 10.0.0.4\nnameserver 10.0.0.5\nnameserver 10.0.0.6\nnameserver 10.0.0.7\nnameserver 10.0.0.8\nnameserver 10.0.0.9\n",
			resolvConf{servers: addrs("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.8")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := parseResolvConf(tt.text)
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(resolvConf{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
				t.Errorf("%q (-want +got)\n%s", tt.text, diff)
			}
		})
	}
}

// TestResolvConfIsFollowed does to the file what DHCP clients, systemd-resolved, NetworkManager and people with editors do.
func TestResolvConfIsFollowed(t *testing.T) {
	dir := t.TempDir()
	etc, run := filepath.Join(dir, "etc"), filepath.Join(dir, "run/systemd/resolve")
	conf, stub := filepath.Join(etc, "resolv.conf"), filepath.Join(run, "stub-resolv.conf")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, text string) { t.Helper(); must(os.WriteFile(path, []byte(text), 0o644)) }
	replace := func(path, text string) { t.Helper(); write(path+".new", text); must(os.Rename(path+".new", path)) }

	const refusal = "the last good ones stay" // also logged when a file is read between its being emptied and written
	var log lines
	s := serve(t, Config{ResolvConf: conf, Log: slog.New(slog.NewTextHandler(&log, nil))})
	servers := func() string {
		var list []string
		for _, u := range s.Stats().Upstreams {
			list = append(list, strings.TrimSuffix(u.Address, ":53"))
		}
		return strings.Join(list, " ")
	}
	steps := []struct {
		name   string
		do     func()
		want   string
		refuse bool // the content is not taken, and the log says so
	}{
		{"the file appears, and the folder that was missing", func() {
			must(os.MkdirAll(run, 0o755))
			must(os.MkdirAll(etc, 0o755))
			write(conf, "nameserver 10.0.0.9\n")
		}, "10.0.0.9", false},
		{"the file is another", func() { write(conf, "nameserver 10.0.0.1\n") }, "10.0.0.1", false},
		{"it is written over", func() { write(conf, "nameserver 10.0.0.2\nnameserver 10.0.0.3\n") }, "10.0.0.2 10.0.0.3", false},
		{"it is replaced by renaming", func() { replace(conf, "nameserver 10.0.0.4\n") }, "10.0.0.4", false},
		{"it is emptied: the last good servers stay", func() { replace(conf, "") }, "10.0.0.4", true},
		{"it is half written: the last good servers stay", func() { replace(conf, "names") }, "10.0.0.4", true},
		{"it becomes a link to systemd-resolved's", func() {
			write(stub, "nameserver 127.0.0.53\n")
			must(os.Symlink("../run/systemd/resolve/stub-resolv.conf", conf+".link"))
			must(os.Rename(conf+".link", conf))
		}, "127.0.0.53", false},
		{"the link's target is replaced", func() { replace(stub, "nameserver 127.0.0.54\n") }, "127.0.0.54", false},
		{"the link points elsewhere", func() {
			write(filepath.Join(run, "resolv.conf"), "nameserver 10.0.0.5\n")
			must(os.Symlink("../run/systemd/resolve/resolv.conf", conf+".link"))
			must(os.Rename(conf+".link", conf))
		}, "10.0.0.5", false},
		{"it is removed and made again", func() {
			must(os.Remove(conf))
			write(conf, "nameserver 10.0.0.6\n")
		}, "10.0.0.6", false},
		{"its folder is replaced", func() {
			must(os.Rename(etc, etc+".old"))
			must(os.Mkdir(etc, 0o755))
			write(conf, "nameserver 10.0.0.7\n")
		}, "10.0.0.7", false},
		{"and the file in the new folder is replaced", func() { replace(conf, "nameserver 10.0.0.8\n") }, "10.0.0.8", false},
		{"it becomes a link again", func() {
			replace(stub, "nameserver 127.0.0.53\n")
			must(os.Symlink("../run/systemd/resolve/stub-resolv.conf", conf+".link"))
			must(os.Rename(conf+".link", conf))
		}, "127.0.0.53", false},
		{"the folder of the link's target is removed and comes back, as at a restart of systemd-resolved", func() {
			must(os.RemoveAll(run))
			must(os.MkdirAll(run, 0o755))
			write(stub, "nameserver 127.0.0.54\n")
		}, "127.0.0.54", false},
		{"and the file in it is replaced", func() { replace(stub, "nameserver 10.0.0.10\n") }, "10.0.0.10", false},
	}
	for _, step := range steps {
		before := log.count(refusal)
		step.do()
		if step.refuse {
			waitFor(t, func() bool { return log.count(refusal) > before })
		}
		waitFor(t, func() bool { return servers() == step.want })
		if got := servers(); got != step.want {
			t.Errorf("%s: upstreams %s, want %s", step.name, got, step.want)
		}
	}
}
