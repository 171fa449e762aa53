package agent

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// A stop goes on when what keeps the rules does not answer.
func TestAStopDoesNotWaitForRulesForEver(t *testing.T) {
	for name, busy := range map[string]func(c *capture){
		"nobody takes the question": func(*capture) {},
		"nobody answers it":         func(c *capture) { <-c.news },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &capture{log: slog.New(slog.DiscardHandler), news: make(chan chan struct{})}
				go busy(c)
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
				defer cancel()
				c.look(ctx)
				if took := time.Since(began); took != captureLimit {
					t.Errorf("waited %s, want %s", took, captureLimit)
				}
			})
		})
	}
}

// DNS that takes questions and answers none is not alive.
func TestSilentDNSIsNotAlive(t *testing.T) {
	silent, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	began := time.Now()
	err = alive(ctx, netip.MustParseAddrPort(silent.LocalAddr().String()))
	if took := time.Since(began); !errors.Is(err, os.ErrDeadlineExceeded) || took > 15*time.Second {
		t.Errorf("%v after %s, want that no answer came in time, after 2 s", err, took)
	}
}
