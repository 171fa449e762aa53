package health

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

const fakeUnitPath = dbus.ObjectPath("/org/freedesktop/systemd1/unit/app_2eservice")

// fakeBus is a system bus with a systemd on it that has one unit. It fails the test when asked anything else.
type fakeBus struct {
	t        *testing.T
	listener net.Listener

	mu         sync.Mutex // guards everything below
	properties map[string]string
	conns      map[net.Conn]bool // whether it subscribed
	serial     uint32
}

func newFakeBus(t *testing.T, properties map[string]string) *fakeBus {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "bus"))
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBus{t: t, listener: l, properties: properties, conns: map[net.Conn]bool{}}
	t.Cleanup(func() { l.Close(); b.drop() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go b.serve(conn)
		}
	}()
	return b
}

func (b *fakeBus) dial(ctx context.Context) (*dbus.Conn, error) {
	return dbus.Connect("unix:path="+b.listener.Addr().String(), dbus.WithContext(ctx))
}

func (b *fakeBus) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for line := ""; line != "BEGIN"; { // https://dbus.freedesktop.org/doc/dbus-specification.html#auth-protocol
		s, err := in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.Trim(s, "\x00\r\n")
		switch {
		case line == "AUTH":
			fmt.Fprint(conn, "REJECTED EXTERNAL\r\n")
		case strings.HasPrefix(line, "AUTH EXTERNAL"), strings.HasPrefix(line, "DATA"):
			fmt.Fprintf(conn, "OK %032d\r\n", 1)
		case line == "NEGOTIATE_UNIX_FD":
			fmt.Fprint(conn, "ERROR\r\n")
		}
	}
	b.mu.Lock()
	b.conns[conn] = false
	b.mu.Unlock()
	for {
		call, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		b.answer(conn, call)
	}
}

func (b *fakeBus) answer(conn net.Conn, call *dbus.Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	text := func(i int) string { s, _ := call.Body[i].(string); return s }
	reply := []any{}
	switch name := stringOf(call.Headers[dbus.FieldMember]); name {
	case "Hello":
		reply = []any{":1.7"}
	case "LoadUnit":
		if text(0) != "app.service" {
			b.t.Errorf("asked for unit %q", text(0))
		}
		reply = []any{fakeUnitPath}
	case "Get":
		value, ok := b.properties[text(1)]
		if !ok {
			b.t.Errorf("asked for property %q", text(1))
		}
		reply = []any{dbus.MakeVariant(value)}
	case "Subscribe":
		b.conns[conn] = true
	case "AddMatch":
	default:
		b.t.Errorf("called %q", name)
	}
	b.send(conn, &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(call.Serial()),
		dbus.FieldSender:      dbus.MakeVariant("org.freedesktop.systemd1"),
	}, Body: reply})
}

func stringOf(v dbus.Variant) string { s, _ := v.Value().(string); return s }

func (b *fakeBus) send(conn net.Conn, m *dbus.Message) {
	if len(m.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(m.Body...))
	}
	b.serial++
	var raw strings.Builder
	if err := m.EncodeTo(&raw, binary.LittleEndian); err != nil {
		b.t.Error(err)
		return
	}
	// The serial, which package dbus keeps to itself: bytes 8 to 11 of the header.
	out := []byte(raw.String())
	binary.LittleEndian.PutUint32(out[8:], b.serial)
	conn.Write(out) // a client that is gone is no news
}

// set changes properties and tells those who subscribed.
func (b *fakeBus) set(properties map[string]string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.properties = properties
	for conn, subscribed := range b.conns {
		if subscribed {
			b.signal(conn, fakeUnitPath, "org.freedesktop.DBus.Properties", "PropertiesChanged", unitInterface, map[string]dbus.Variant{}, []string{"ActiveState"})
		}
	}
}

// reexec is systemd taking its name again and forgetting who subscribed.
func (b *fakeBus) reexec() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn := range b.conns {
		b.conns[conn] = false
		b.signal(conn, "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", systemdName, ":1.1", "")
	}
}

func (b *fakeBus) signal(conn net.Conn, path dbus.ObjectPath, iface, member string, body ...any) {
	b.send(conn, &dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath:      dbus.MakeVariant(path),
		dbus.FieldInterface: dbus.MakeVariant(iface),
		dbus.FieldMember:    dbus.MakeVariant(member),
		dbus.FieldSender:    dbus.MakeVariant("org.freedesktop.DBus"),
	}, Body: body})
}

// drop closes all connections.
func (b *fakeBus) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for conn := range b.conns {
		conn.Close()
		delete(b.conns, conn)
	}
}

func state3(active, sub string) map[string]string {
	return map[string]string{"LoadState": "loaded", "ActiveState": active, "SubState": sub, "Result": "exit-code"}
}

// followed starts a watcher on the fake bus and returns a function that waits for its next word: "" for a success.
func followed(t *testing.T, b *fakeBus) (next func() string) {
	w := newUnitWatcher("app.service", 10*time.Second, slog.New(slog.DiscardHandler))
	w.dial = b.dial
	ctx, cancel := context.WithCancel(t.Context())
	words := make(chan string, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.watch(ctx, func(err error) {
			if err == nil {
				words <- ""
				return
			}
			words <- err.Error()
		})
	}()
	t.Cleanup(func() { cancel(); <-done })
	return func() string {
		t.Helper()
		select {
		case word := <-words:
			return word
		case <-time.After(30 * time.Second):
			t.Fatal("no word")
			return ""
		}
	}
}

func TestAUnitsChangesArePushed(t *testing.T) {
	b := newFakeBus(t, state3("active", "running"))
	next := followed(t, b)
	for i, step := range []struct {
		properties map[string]string
		want       string
	}{
		{nil, ""},
		{state3("deactivating", "stop-sigterm"), "systemd unit app.service: deactivating (stop-sigterm)"},
		{state3("inactive", "dead"), "systemd unit app.service: inactive (dead)"},
		{state3("activating", "start"), "systemd unit app.service: activating (start)"},
		{state3("active", "running"), ""},
		{state3("reloading", "reload"), ""},
		{state3("failed", "failed"), "systemd unit app.service: failed (exit-code)"},
		{map[string]string{"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"}, "systemd unit app.service: systemd knows no such unit"},
		{map[string]string{"LoadState": "masked", "ActiveState": "inactive", "SubState": "dead"}, "systemd unit app.service: not loaded (masked)"},
	} {
		if step.properties != nil {
			b.set(step.properties)
		}
		if got := next(); got != step.want {
			t.Fatalf("step %d: %q, want %q", i, got, step.want)
		}
	}
}

func TestALostBusSaysNothingAboutTheUnit(t *testing.T) {
	for _, tt := range []struct {
		name string
		lose func(*fakeBus)
	}{{"the bus goes away", (*fakeBus).drop}, {"systemd re-executes itself", (*fakeBus).reexec}} {
		t.Run(tt.name, func(t *testing.T) {
			b := newFakeBus(t, state3("active", "running"))
			next := followed(t, b)
			if got := next(); got != "" {
				t.Fatalf("%q, want success", got)
			}
			tt.lose(b)
			b.mu.Lock()
			b.properties = state3("failed", "failed") // unseen while away; no signal comes for it
			b.mu.Unlock()
			if got, want := next(), "systemd unit app.service: failed (exit-code)"; got != want {
				t.Errorf("next word %q, want %q", got, want)
			}
			b.set(state3("active", "running")) // told only to those who subscribed since
			if got := next(); got != "" {
				t.Errorf("after that %q, want success", got)
			}
		})
	}
}

func TestABusThatWasNeverThereIsAFailure(t *testing.T) {
	w := newUnitWatcher("app.service", time.Second, slog.New(slog.DiscardHandler))
	word := func(w *unitWatcher) string {
		ctx, cancel := context.WithCancel(t.Context())
		var got string
		w.watch(ctx, func(err error) { got = fmt.Sprint(err); cancel() })
		return got
	}
	w.dial = func(ctx context.Context) (*dbus.Conn, error) {
		return dbus.Connect("unix:path=/no/such/bus", dbus.WithContext(ctx))
	}
	if got, want := word(w), "systemd unit app.service: cannot ask systemd: dial unix /no/such/bus: connect: no such file or directory"; got != want {
		t.Errorf("no bus: %q, want %q", got, want)
	}
	silent, err := net.Listen("unix", filepath.Join(t.TempDir(), "bus")) // connections wait to be accepted
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	w.dial = (&fakeBus{listener: silent}).dial
	if got, want := word(w), "systemd unit app.service: cannot ask systemd: no answer in time: 1s"; got != want {
		t.Errorf("a bus that does not answer: %q, want %q", got, want)
	}
}

func TestUnitNames(t *testing.T) {
	for name, want := range map[string]bool{
		"myapp.service": true, "a@b.service": true, "dev-disk-by\\x2dlabel.device": true, "app:1.socket": true, "user@1000.service": true,
		"": false, "myapp": false, "my app.service": false, "a@.service": false, "../a.service": false, "a.service;b": false, "a.txt": false,
		strings.Repeat("a", 250) + ".service": false,
	} {
		if got := validUnitName(name); got != want {
			t.Errorf("%q: valid %v, want %v", name, got, want)
		}
	}
}
