package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godbus/dbus/v5"
)

// fakeLogin is a systemd-logind that notes what is done with it, and when.
type fakeLogin struct {
	began   time.Time
	signals chan *dbus.Signal
	refusal error // of the next requests for a lock; nil: they are granted
	said    []string
}

func (f *fakeLogin) note(what string) {
	f.said = append(f.said, fmt.Sprintf("%s at %.1f", what, time.Since(f.began).Seconds()))
}

type fakeLock func()

func (f fakeLock) Close() error { f(); return nil }

func (f *fakeLogin) login() login {
	return login{
		signals: f.signals,
		inhibit: func(context.Context) (io.Closer, error) {
			if f.refusal != nil {
				f.note("refused")
				return nil, f.refusal
			}
			f.note("locked")
			return fakeLock(func() { f.note("released") }), nil
		},
		limit: func(context.Context) (dbus.Variant, error) { return dbus.MakeVariant(uint64(5_000_000)), nil },
	}
}

func prepare(begins any) *dbus.Signal {
	return &dbus.Signal{Name: loginManager + ".PrepareForShutdown", Body: []any{begins}}
}

func TestDelayShutdowns(t *testing.T) {
	gone := dbus.Error{Name: "org.freedesktop.DBus.Error.NameHasNoOwner"}
	came := &dbus.Signal{Name: "org.freedesktop.DBus.NameOwnerChanged", Body: []any{loginName, "", ":1.5"}}
	for _, tt := range []struct {
		name    string
		refusal error
		takes   time.Duration // by what is to be done before a shutdown
		events  []any         // signals, the next refusal, "granted"
		want    string
		failure string
	}{
		{"the lock is held until the end", nil, 0, nil, "locked at 0.0, released at 9.0", ""},
		{"a shutdown waits for what is to be done", nil, 3 * time.Second, []any{prepare(true)}, "locked at 0.0, begins at 0.0, done at 3.0, released at 3.0", ""},
		{"and no longer than systemd-logind grants", nil, time.Minute, []any{prepare(true)}, "locked at 0.0, begins at 0.0, out of time at 4.5, released at 4.5", ""},
		{"one that is called off is followed by another", nil, time.Second, []any{prepare(true), prepare(false), prepare(true)},
			"locked at 0.0, begins at 0.0, done at 1.0, released at 1.0, called off at 1.0, locked at 1.0, begins at 1.0, done at 2.0, released at 2.0", ""},
		{"no systemd-logind: it may come", gone, 0, []any{"granted", came}, "refused at 0.0, locked at 0.0, released at 9.0", ""},
		{"another systemd-logind: the lock is asked of it", nil, 0, []any{came}, "locked at 0.0, locked at 0.0, released at 0.0, released at 9.0", ""},
		{"it went: the lock that it may know again is kept", nil, 0, []any{gone, came}, "locked at 0.0, refused at 0.0, released at 9.0", ""},
		{"it is not allowed", errors.New("Access denied"), 0, nil, "refused at 0.0", "ask systemd-logind to delay shutdowns: Access denied"},
		{"the bus goes", nil, 0, []any{nil}, "locked at 0.0, released at 0.0", "the bus closed the connection"},
		{"what says nothing", nil, 0, []any{&dbus.Signal{Name: loginManager + ".SessionNew", Body: []any{true}}, prepare("yes"), &dbus.Signal{Name: loginManager + ".PrepareForShutdown"}}, "locked at 0.0, released at 9.0", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeLogin{began: time.Now(), signals: make(chan *dbus.Signal), refusal: tt.refusal}
				ctx, cancel := context.WithTimeout(t.Context(), 9*time.Second)
				defer cancel()
				var err error
				done := make(chan struct{})
				go func() {
					defer close(done)
					err = delayShutdowns(ctx, f.login(), Shutdown{
						Begins: func(ctx context.Context) {
							f.note("begins")
							select {
							case <-time.After(tt.takes):
								f.note("done")
							case <-ctx.Done():
								f.note("out of time")
							}
						},
						CalledOff: func() { f.note("called off") },
					})
				}()
				for _, e := range tt.events {
					synctest.Wait()
					switch e := e.(type) {
					case *dbus.Signal:
						f.signals <- e
					case error:
						f.refusal = e
					case string:
						f.refusal = nil
					case nil:
						close(f.signals)
					}
				}
				<-done
				if got := strings.Join(f.said, ", "); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
				if fmt.Sprint(err) != tt.failure && (err != nil || tt.failure != "") {
					t.Errorf("error %v, want %q", err, tt.failure)
				}
			})
		})
	}
}

func TestWithoutABusShutdownsAreNotDelayed(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+t.TempDir()+"/none")
	if err := DelayShutdowns(t.Context(), "who", "why", Shutdown{}); err == nil || !strings.HasPrefix(err.Error(), "connect to the system bus: ") {
		t.Errorf("error %v", err)
	}
}

func TestHowLongAShutdownMayBeDelayed(t *testing.T) {
	var got []time.Duration
	for _, v := range []any{uint64(5_000_000), uint64(30_000_000), uint64(0), uint64(100_000), uint64(math.MaxUint64), "5s"} {
		got = append(got, delay(dbus.MakeVariant(v), nil))
	}
	got = append(got, delay(dbus.Variant{}, errors.New("no answer")))
	usual := 4500 * time.Millisecond
	if want := []time.Duration{usual, 29500 * time.Millisecond, 0, 0, usual, usual, usual}; !slices.Equal(got, want) {
		t.Errorf("got %s, want %s", got, want)
	}
}
