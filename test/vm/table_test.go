package vm

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// table holds a line for each event that was shown, for people: TestMain writes it where WINGMAN_VM_TABLE says, or prints it.
var table [][4]string

func TestMain(m *testing.M) {
	code := m.Run()
	if len(table) > 0 {
		rows := append([][4]string{{"event", "DNS lost", "requests lost", "else"}, {"---", "---", "---", "---"}}, table...)
		var text strings.Builder
		for _, r := range rows {
			fmt.Fprintln(&text, "| "+strings.Join(r[:], " | ")+" |")
		}
		if file := os.Getenv("WINGMAN_VM_TABLE"); file == "" {
			fmt.Print(text.String())
		} else if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, "write the table:", err)
			code = max(code, 1)
		}
	}
	if builtIn != "" {
		os.RemoveAll(builtIn)
	}
	os.Exit(code)
}

// row is one line of the table while it is made.
type row struct {
	*testing.T
	*stage
	dns, requests string   // what was lost of how many; empty: nobody asked
	notes         []string // what else there is to say
}

func (r *row) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// show makes one line of the table: a part of the test for one event in the machines' life.
func (s *stage) show(t *testing.T, name, event string, happen func(*row)) {
	t.Run(name, func(t *testing.T) {
		s.tell(t)
		s.settle(t)
		r := &row{T: t, stage: s}
		defer func() {
			if _, lenient := waived.Load(t.Name()); lenient {
				r.note("on a busy computer: not held to the time")
			}
			if t.Failed() {
				r.note("FAILED")
			}
			for _, cell := range []*string{&r.dns, &r.requests} {
				if *cell == "" {
					*cell = "–"
				}
			}
			table = append(table, [4]string{event, r.dns, r.requests, strings.Join(r.notes, "; ")})
			t.Logf("%s | %s | %s | %s", event, r.dns, r.requests, strings.Join(r.notes, "; "))
		}()
		happen(r)
	})
}

// load is both clients of a row at work.
type load struct {
	r             *row
	dns, requests *client
}

// Whom the loads ask.
const (
	stub       = "127.0.0.53:53" // as resolv.conf says
	publicName = "www.example.com."
	publicAddr = "192.0.2.80"
)

// begin has forum ask for a name, and send requests to catalog through both machines' Envoys.
func (r *row) begin(name, address string) *load {
	r.Helper()
	return &load{r,
		startClient(r, r.forum, "queries of forum", "dns", stub, name, address),
		startClient(r, r.forum, "requests of forum to catalog", "http", r.catalogVIP+":80", strings.TrimSuffix(catalogName, ".")),
	}
}

// usual is begin with a name of the mesh.
func (r *row) usual() *load { r.Helper(); return r.begin(catalogName, r.catalogVIP) }

// end ends both and notes what they lost.
func (l *load) end() (dns, requests outcome) {
	l.r.Helper()
	dns, requests = l.dns.end(), l.requests.end()
	l.r.dns, l.r.requests = dns.String(), requests.String()
	if dns.Again > 0 {
		l.r.dns += fmt.Sprintf(" (%d at the second attempt)", dns.Again)
	}
	return dns, requests
}

// noticed is how long something may take before people notice.
const noticed = 2 * time.Second

// mustBeWhole is end for an event that nobody may notice.
func (l *load) mustBeWhole() {
	l.r.Helper()
	dns, requests := l.end()
	l.r.whole("queries", dns)
	l.r.whole("requests", requests)
	for what, o := range map[string]outcome{"query": dns, "request": requests} {
		if o.Slowest > noticed && !busy(l.r) {
			l.r.Errorf("a %s took %s, want at most %s", what, o.Slowest, noticed)
		}
	}
	l.r.dns += ", the slowest " + ms(dns.Slowest)
	l.r.requests += ", the slowest " + ms(requests.Slowest)
	if dns.Again > 0 {
		l.r.Errorf("%d queries were answered at the second attempt only", dns.Again)
	}
}

// whole fails the row when something was lost.
func (r *row) whole(what string, o outcome) {
	r.Helper()
	if least := 150.0; o.Sent < 100 || o.rate() < least && !busy(r) { // of the 200 that a client tries to send
		r.Errorf("%d %s were sent, %.0f a second, want at least %.0f", o.Sent, what, o.rate(), least)
	}
	if len(o.Failed) > 0 {
		r.Errorf("%s lost: %s, want none\n%s", what, o, r.forum.lastWords())
	}
}

// sameEntry fails the row when forum's WorkloadEntry was at any moment since then another one, gone or unhealthy.
func (r *row) sameEntry(before planeState, since time.Time) {
	r.Helper()
	if now := r.plane.now(forumEntry); now.Gone || now.UID != before.UID {
		r.Errorf("the WorkloadEntry is %+v, want the one from before, %s", now, before.UID)
	}
	for _, s := range r.plane.states(forumEntry, since) {
		if s.Gone || s.UID != before.UID || s.Healthy != "True" {
			r.Errorf("the WorkloadEntry was %+v for a time", s)
		}
	}
}

// median of some times; it sorts them.
func median(times []time.Duration) time.Duration {
	slices.Sort(times)
	return times[len(times)/2]
}

// mostly is the time to hold against a limit: half of the times may be longer. On a busy computer, which does other things as well, it is the best one.
func mostly(t testing.TB, times []time.Duration) time.Duration {
	t.Helper()
	half := median(times)
	if busy(t) {
		return times[0]
	}
	return half
}

// waived holds the names of tests that were lenient because the computer was busy: their lines in the table say so.
var waived sync.Map

// busy reports whether this computer has more to do than it has processors for.
func busy(t testing.TB) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		t.Fatal(err)
	}
	var load float64 // of the last minute
	if _, err := fmt.Sscan(string(text), &load); err != nil {
		t.Fatal(err)
	}
	if load <= 1.5*float64(runtime.NumCPU()) {
		return false
	}
	waived.Store(t.Name(), true)
	return true
}

func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
