package controlplane_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"wingman/test/controlplane"
)

func TestConnectionLevers(t *testing.T) {
	t.Parallel()

	t.Run("a refusing port leaves open streams alone and heals", func(t *testing.T) {
		s := withGroup(t, controlplane.Config{})
		old := newClient(t, s, s.RootPEM(), nil).joined()
		if err := s.Faults().Refuse(true); err != nil {
			t.Fatal(err)
		}
		if _, _, err := newClient(t, s, s.RootPEM(), nil).sign(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "refused") {
			t.Errorf("got %v, want a refused connection", err)
		}
		s.AddService("istioinaction", "webapp", "10.96.97.98")
		if _, err := old.Recv(); err != nil {
			t.Errorf("the stream that was open: %v", err)
		}
		if err := s.Faults().Refuse(false); err != nil {
			t.Fatal(err)
		}
		newClient(t, s, s.RootPEM(), nil).cert()
	})

	t.Run("a hanging port accepts and says nothing", func(t *testing.T) {
		s := withGroup(t, controlplane.Config{})
		s.Faults().Hang(true)
		conn, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if err := conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v, want a time-out", err)
		}
		s.Faults().Hang(false)
		newClient(t, s, s.RootPEM(), nil).cert()
	})

	t.Run("a dropped connection ends its stream without a goodbye", func(t *testing.T) {
		s := withGroup(t, controlplane.Config{})
		st := newClient(t, s, s.RootPEM(), nil).joined()
		s.Faults().DropConnections()
		if _, err := st.Recv(); status.Code(err) != codes.Unavailable || strings.Contains(err.Error(), "goaway") {
			t.Errorf("stream ended with %v, want Unavailable without a GOAWAY", err)
		}
	})

	t.Run("a drained connection says goodbye, and the stream may stay for the grace", func(t *testing.T) {
		s := withGroup(t, controlplane.Config{})
		c := newClient(t, s, s.RootPEM(), nil)
		st := c.joined()
		begun := time.Now()
		s.Faults().DrainConnections(200 * time.Millisecond)
		if _, err := st.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "NO_ERROR") {
			t.Errorf("stream ended with %v, want Unavailable after a GOAWAY with NO_ERROR", err)
		}
		if lived := time.Since(begun); lived < 200*time.Millisecond {
			t.Errorf("stream lived %s, want the grace of 200ms", lived)
		}
		c.joined() // the same channel, a new connection
	})

	t.Run("a killed control plane refuses, and comes back at the same address with its entries", func(t *testing.T) {
		s := withGroup(t, controlplane.Config{Grace: 2 * time.Second}) // ten times that is how long the entry waits for the stream after the start
		addr := s.Addr()
		st := newClient(t, s, s.RootPEM(), nil).joined()
		s.Stop()
		if _, err := st.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("stream ended with %v, want Unavailable", err)
		}
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			t.Error("the port of a killed control plane accepts connections")
		}
		if all := s.Entries(); len(all) != 1 || !all[0].LeftAt.IsZero() {
			t.Errorf("entries after the kill are %+v, want the one that was there, as it was", all)
		}
		if l, err := net.Listen("tcp", addr); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("listen at the killed control plane's port: %v, %v; want it kept", l, err)
		}
		before := len(s.Events())
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		if s.Addr() != addr {
			t.Errorf("address is %s, was %s", s.Addr(), addr)
		}
		newClient(t, s, s.RootPEM(), nil).joined()
		if _, err := s.WaitEventAfter(patient(t), before, func(e controlplane.Event) bool { return e.Kind == controlplane.EntryConnected }); err != nil {
			t.Error(err)
		}
	})

	t.Run("an entry is left by its last stream alone", func(t *testing.T) {
		s := withGroup(t, controlplane.Config{})
		first, second := newClient(t, s, s.RootPEM(), nil), newClient(t, s, s.RootPEM(), nil)
		first.joined()
		second.joined()
		first.conn.Close()
		closed, err := s.WaitEvent(patient(t), func(e controlplane.Event) bool { return e.Kind == controlplane.StreamClosed })
		if err != nil {
			t.Fatal(err)
		}
		if e := s.Entries()[0]; !e.Connected || !e.LeftAt.IsZero() {
			t.Errorf("after stream %d ended the entry is %+v, want it connected", closed.Stream, e)
		}
		if all := s.Streams(); len(all) != 1 || all[0].ID == closed.Stream {
			t.Errorf("open streams are %+v, want the other one alone", all)
		}
		second.conn.Close()
		if _, err := s.WaitEvent(patient(t), func(e controlplane.Event) bool { return e.Kind == controlplane.EntryLeft }); err != nil {
			t.Error(err)
		}
	})

	t.Run("an entry left before a kill goes some time after the control plane is back", func(t *testing.T) {
		s := withGroup(t, controlplane.Config{Grace: 50 * time.Millisecond})
		c := newClient(t, s, s.RootPEM(), nil)
		c.joined()
		c.conn.Close()
		if _, err := s.WaitEntry(patient(t), func(e controlplane.Entry) bool { return !e.LeftAt.IsZero() }); err != nil {
			t.Fatal(err)
		}
		s.Stop()
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		if err := s.WaitNoEntry(patient(t), "forum-services", "forum-10.99.0.2"); err != nil {
			t.Error(err)
		}
	})
}

func TestStreamLevers(t *testing.T) {
	t.Parallel()
	s := withGroup(t, controlplane.Config{MultiRoot: true})
	c := newClient(t, s, s.RootPEM(), nil)

	t.Run("streams end with the status they are told", func(t *testing.T) {
		st := c.joined()
		s.Faults().EndStreams(codes.ResourceExhausted, "too many")
		if _, err := st.Recv(); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v, want ResourceExhausted", err)
		}
	})

	t.Run("a stream may end without an error", func(t *testing.T) {
		st := c.joined()
		s.Faults().EndStreams(codes.OK, "")
		if _, err := st.Recv(); !errors.Is(err, io.EOF) {
			t.Errorf("got %v, want EOF", err)
		}
	})

	t.Run("new streams are refused until they are not", func(t *testing.T) {
		s.Faults().RefuseStreams(codes.Unavailable, "server is not ready to serve discovery information")
		if _, err := c.stream().Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("got %v, want Unavailable", err)
		}
		s.Faults().RefuseStreams(codes.OK, "")
		c.joined()
	})

	t.Run("answers come late", func(t *testing.T) {
		s.Faults().Delay(100 * time.Millisecond)
		defer s.Faults().Delay(0)
		begun := time.Now()
		c.joined()
		if took := time.Since(begun); took < 100*time.Millisecond {
			t.Errorf("first answer took %s, want at least 100ms", took)
		}
	})

	t.Run("a muted type gets no answer, others do", func(t *testing.T) {
		s.Faults().Mute(controlplane.NameTableType)
		defer s.Faults().Mute()
		st := c.stream()
		request(t, st, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.ClusterType})
		if r, err := st.Recv(); err != nil || r.GetTypeUrl() != controlplane.ClusterType {
			t.Errorf("got %v, %v, want an answer for clusters", r, err)
		}
	})

	t.Run("a NACK of a type never asked for ends the stream and is recorded", func(t *testing.T) {
		before := len(s.Events())
		st := c.joined()
		request(t, st, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: controlplane.RouteType, ResponseNonce: "old", ErrorDetail: status.New(codes.Internal, "no").Proto()})
		if _, err := st.Recv(); status.Code(err) != codes.Internal {
			t.Errorf("got %v, want Internal", err)
		}
		if _, err := s.WaitEventAfter(patient(t), before, func(e controlplane.Event) bool { return e.Kind == controlplane.Violation }); err != nil {
			t.Error(err)
		}
	})
}

func TestCAFaults(t *testing.T) {
	t.Parallel()
	s := withGroup(t, controlplane.Config{})
	for _, c := range []struct {
		reply controlplane.CAReply
		check func(*testing.T, []string)
	}{
		{controlplane.CAOneCertificate, func(t *testing.T, chain []string) {
			if len(chain) != 1 {
				t.Errorf("%d elements, want 1", len(chain))
			}
		}},
		{controlplane.CAEmpty, func(t *testing.T, chain []string) {
			if len(chain) != 0 {
				t.Errorf("%d elements, want none", len(chain))
			}
		}},
		{controlplane.CAWrongOrder, func(t *testing.T, chain []string) {
			if !parsePEM(t, chain[0]).IsCA {
				t.Error("the first element is no CA")
			}
		}},
		{controlplane.CAGarbage, func(t *testing.T, chain []string) {
			if x509.NewCertPool().AppendCertsFromPEM([]byte(strings.Join(chain, "\n"))) {
				t.Error("there is a certificate in the garbage")
			}
		}},
		{controlplane.CAOtherIdentity, func(t *testing.T, chain []string) {
			if got := parsePEM(t, chain[0]).URIs[0].String(); !strings.HasSuffix(got, "/sa/intruder") {
				t.Errorf("identity is %s", got)
			}
		}},
		{controlplane.CAForeignRoot, func(t *testing.T, chain []string) {
			roots := x509.NewCertPool()
			roots.AppendCertsFromPEM([]byte(chain[len(chain)-1]))
			if _, err := parsePEM(t, chain[0]).Verify(x509.VerifyOptions{Roots: roots}); err == nil {
				t.Error("the leaf chains to the root beside it")
			}
		}},
	} {
		t.Run(string(c.reply), func(t *testing.T) {
			s.Faults().SetCA(controlplane.CAFault{Reply: c.reply})
			_, chain, err := newClient(t, s, s.RootPEM(), nil).sign()
			if err != nil {
				t.Fatal(err)
			}
			c.check(t, chain)
		})
	}

	t.Run("other key", func(t *testing.T) {
		s.Faults().SetCA(controlplane.CAFault{Reply: controlplane.CAOtherKey})
		key, chain, err := newClient(t, s, s.RootPEM(), nil).sign()
		if err != nil {
			t.Fatal(err)
		}
		if key.PublicKey.Equal(parsePEM(t, chain[0]).PublicKey) {
			t.Error("the certificate is for our key")
		}
	})

	t.Run("a status for one request, then well again", func(t *testing.T) {
		for _, code := range []codes.Code{codes.Unavailable, codes.ResourceExhausted, codes.PermissionDenied} {
			s.Faults().SetCA(controlplane.CAFault{Reply: controlplane.CAError, Code: code, Times: 1})
			c := newClient(t, s, s.RootPEM(), nil)
			if _, _, err := c.sign(); status.Code(err) != code {
				t.Errorf("got %v, want %v", err, code)
			}
			c.cert()
		}
	})

	t.Run("a short life", func(t *testing.T) {
		s.Faults().SetCA(controlplane.CAFault{Validity: 5 * time.Second})
		if left := time.Until(newClient(t, s, s.RootPEM(), nil).cert().Leaf.NotAfter); left > 5*time.Second {
			t.Errorf("life is %s, want at most 5s", left)
		}
	})

	t.Run("no answer until the caller gives up", func(t *testing.T) {
		s.Faults().SetCA(controlplane.CAFault{Reply: controlplane.CAHang})
		c := newClient(t, s, s.RootPEM(), nil)
		ctx, cancel := context.WithTimeout(c.ctx, 100*time.Millisecond)
		defer cancel()
		c.ctx = ctx
		if _, _, err := c.sign(); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v, want DeadlineExceeded", err)
		}
		s.Faults().SetCA(controlplane.CAFault{})
	})

	t.Run("a late answer", func(t *testing.T) {
		s.Faults().CADelay(100 * time.Millisecond)
		defer s.Faults().CADelay(0)
		begun := time.Now()
		newClient(t, s, s.RootPEM(), nil).cert()
		if took := time.Since(begun); took < 100*time.Millisecond {
			t.Errorf("reply took %s, want at least 100ms", took)
		}
	})

	t.Run("a revoked token is refused, a new one is not", func(t *testing.T) {
		c := newClient(t, s, s.RootPEM(), nil)
		if err := s.Faults().RevokeTokens(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.sign(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("got %v, want Unauthenticated", err)
		}
		newClient(t, s, s.RootPEM(), nil).cert()
	})
}
