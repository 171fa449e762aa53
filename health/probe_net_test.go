package health

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ask runs p's check once, against instance as the default host, within a time-out that only hanging servers meet.
func ask(t *testing.T, p Probe, instance string) (reason string) {
	t.Helper()
	if p.Timeout == 0 {
		p.Timeout = 10 * time.Second
	}
	if problems := p.problems("probe", false); len(problems) > 0 {
		t.Fatal(problems)
	}
	poller := p.watcher(instance, []string{"PATH=/usr/bin:/bin"}, nil).(*poller)
	ctx, cancel := context.WithTimeout(t.Context(), poller.within)
	defer cancel()
	if err := poller.run(ctx); err != nil {
		return err.Error()
	}
	return ""
}

// serve starts a server that does what handle says with each connection, on 127.0.0.1, and returns its port.
func serve(t *testing.T, handle func(net.Conn)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				handle(conn)
			}()
		}
	}()
	return portOf(l.Addr())
}

func portOf(a net.Addr) uint16 { return a.(*net.TCPAddr).AddrPort().Port() }

// closedPort is one on 127.0.0.1 that is taken, so that nobody else listens there, and not listened on.
func closedPort(t *testing.T) uint16 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(name.(*unix.SockaddrInet4).Port)
}

// hang reads until the other side gives up.
func hang(conn net.Conn) {
	for buf := make([]byte, 1024); ; {
		if _, err := conn.Read(buf); err != nil {
			return
		}
	}
}

func TestHTTPAnswers(t *testing.T) {
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { t.Error("another host was asked") }))
	defer other.Close()
	otherURL := strings.Replace(other.URL, "127.0.0.1", "localhost", 1)
	mux := http.NewServeMux()
	answer := func(path string, code int, location, body string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			if location != "" {
				w.Header().Set("Location", location)
			}
			w.WriteHeader(code)
			fmt.Fprint(w, body)
		})
	}
	answer("/ok", 200, "", "fine")
	answer("/created", 201, "", "")
	answer("/not-modified", 304, "", "")
	answer("/last", 399, "", "")
	answer("/bad", 400, "", "")
	answer("/missing", 404, "", "\n\n  no such page\t\x1b[31m\nsecond line")
	answer("/down", 503, "", strings.Repeat("database is down ", 40))
	answer("/to-ok", 302, "/ok", "")
	answer("/to-down", 307, "/down", "")
	answer("/loop", 302, "/loop", "")
	answer("/away", 302, otherURL+"/", "")
	answer("/nowhere", 302, "", "")
	server := httptest.NewServer(mux)
	defer server.Close()
	port := portOf(server.Listener.Addr())
	at := fmt.Sprintf("GET http://127.0.0.1:%d", port)

	for _, tt := range []struct {
		name, path, want string // want is the reason, empty for success
	}{
		{"200", "/ok", ""},
		{"201", "/created", ""},
		{"a path without slash", "ok", ""},
		{"a query", "/ok?full=1&x=a%20b", ""},
		{"304", "/not-modified", ""},
		{"399 is the last success", "/last", ""},
		{"400 is the first failure", "/bad", "/bad: 400 Bad Request"},
		{"the first line of the answer is quoted", "/missing", "/missing: 404 Not Found: no such page ?[31m"},
		{"a long answer is cut", "/down", "/down: 503 Service Unavailable: " + strings.Repeat("database is down ", 11) + "database i…"},
		{"a redirect on the same host is followed", "/to-ok", ""},
		{"and judged by its end", "/to-down", "/to-down, redirected to http://127.0.0.1:PORT/down: 503 Service Unavailable: " +
			strings.Repeat("database is down ", 11) + "database i…"},
		{"redirects without end", "/loop", "/loop, redirected to /loop: 10 redirects, and no end"},
		{"a redirect to another host is not followed and passes", "/away", ""},
		{"a redirect to nowhere passes", "/nowhere", ""},
		{"a path that is no URL is sent as it stands", "/%zz", "/%25zz: 404 Not Found: 404 page not found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.want
			if want != "" {
				want = at + strings.ReplaceAll(want, "PORT", fmt.Sprint(port))
			}
			if got := ask(t, Probe{HTTP: &HTTPGet{Path: tt.path, Port: port}}, "127.0.0.1"); got != want {
				t.Errorf("path %s:\ngot  %q\nwant %q", tt.path, got, want)
			}
		})
	}
}

// request is what a server saw.
type request struct {
	remote string
	line   string
	header map[string]string
}

// recordRequest starts a server that answers 200 and hands over what it was asked.
func recordRequest(t *testing.T) (port uint16, seen func() request) {
	requests := make(chan request, 1)
	port = serve(t, func(conn net.Conn) {
		lines := bufio.NewScanner(conn)
		lines.Scan()
		r := request{line: lines.Text(), header: map[string]string{}}
		r.remote, _, _ = net.SplitHostPort(conn.RemoteAddr().String())
		for lines.Scan() && lines.Text() != "" {
			k, v, _ := strings.Cut(lines.Text(), ": ")
			r.header[k] += v
		}
		fmt.Fprint(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		requests <- r
	})
	return port, func() request { return <-requests }
}

func TestHTTPAsksAsIstioDoes(t *testing.T) {
	port, seen := recordRequest(t)
	if reason := ask(t, Probe{HTTP: &HTTPGet{Port: port}}, "127.0.0.1"); reason != "" {
		t.Fatal(reason)
	}
	r := seen()
	if r.remote != "127.0.0.6" {
		t.Errorf("came from %s, want 127.0.0.6, which the capture rules let through", r.remote)
	}
	if r.line != "GET / HTTP/1.1" {
		t.Errorf("asked %q, want GET / HTTP/1.1", r.line)
	}
	for key, want := range map[string]string{"User-Agent": "istio-probe/1.0", "Host": fmt.Sprintf("127.0.0.1:%d", port), "Connection": "close"} {
		if r.header[key] != want {
			t.Errorf("header %s: %q, want %q", key, r.header[key], want)
		}
	}

	headers := [][2]string{{"host", "app.example"}, {"user-agent", "mine/2"}, {"X-Token", "a"}, {"X-Token", "b"}}
	if reason := ask(t, Probe{HTTP: &HTTPGet{Path: "/z?a=b", Port: port, Headers: headers}}, "127.0.0.1"); reason != "" {
		t.Fatal(reason)
	}
	r = seen()
	if r.line != "GET /z?a=b HTTP/1.1" {
		t.Errorf("asked %q, want GET /z?a=b HTTP/1.1", r.line)
	}
	for key, want := range map[string]string{"User-Agent": "mine/2", "Host": "app.example", "X-Token": "ab"} {
		if r.header[key] != want {
			t.Errorf("header %s: %q, want %q", key, r.header[key], want)
		}
	}
}

func TestHTTPIgnoresProxySettings(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	port, seen := recordRequest(t)
	if reason := ask(t, Probe{HTTP: &HTTPGet{Host: "localhost", Port: port}}, ""); reason != "" {
		t.Fatal(reason)
	}
	seen()
}

func TestHTTPSDoesNotVerify(t *testing.T) {
	for _, tt := range []struct {
		name  string
		http2 bool
		proto string
	}{{"HTTP/1.1", false, "HTTP/1.1"}, {"HTTP/2 when the server offers it", true, "HTTP/2.0"}} {
		t.Run(tt.name, func(t *testing.T) {
			protos := make(chan string, 1)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { protos <- r.Proto }))
			server.EnableHTTP2 = tt.http2
			server.StartTLS() // a certificate that nobody trusts, for another name
			defer server.Close()
			if reason := ask(t, Probe{HTTP: &HTTPGet{Scheme: "HTTPS", Port: portOf(server.Listener.Addr())}}, "127.0.0.1"); reason != "" {
				t.Fatal(reason)
			}
			if got := <-protos; got != tt.proto {
				t.Errorf("asked by %s, want %s", got, tt.proto)
			}
		})
	}
}

func TestBrokenServersGetAReasonForPeople(t *testing.T) {
	closed := closedPort(t)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	secure := httptest.NewTLSServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(secure.Close)
	hanging, closing := serve(t, hang), serve(t, func(conn net.Conn) { bufio.NewReader(conn).ReadString('\n') })
	gibberish := serve(t, func(conn net.Conn) {
		bufio.NewReader(conn).ReadString('\n')
		fmt.Fprint(conn, "SSH-2.0-OpenSSH_9.2\r\n")
		hang(conn)
	})

	const aWhile = 2 * time.Second // on a loaded machine, too, it is connected by then
	tests := []struct {
		name  string
		probe Probe
		want  string
	}{
		{"nobody listens", Probe{HTTP: &HTTPGet{Path: "/api/healthz", Port: closed}}, "GET http://127.0.0.1:PORT/api/healthz: connection refused"},
		{"nobody listens, TCP", Probe{TCP: &TCPSocket{Port: closed}}, "TCP 127.0.0.1:PORT: connection refused"},
		{"nobody listens, gRPC", Probe{GRPC: &GRPC{Port: closed}}, "gRPC 127.0.0.1:PORT: connection refused"},
		{"no answer", Probe{HTTP: &HTTPGet{Port: hanging}, Timeout: aWhile},
			"GET http://127.0.0.1:PORT/: connected, but no answer within 2s"},
		{"no answer in TLS", Probe{HTTP: &HTTPGet{Scheme: "https", Port: hanging}, Timeout: aWhile},
			"GET https://127.0.0.1:PORT/: connected, but no answer within 2s"},
		{"no answer, gRPC", Probe{GRPC: &GRPC{Port: hanging}, Timeout: aWhile},
			"gRPC 127.0.0.1:PORT: connected, but no answer within 2s"},
		{"closed without an answer", Probe{HTTP: &HTTPGet{Port: closing}}, "GET http://127.0.0.1:PORT/: connection closed without an answer"},
		{"not HTTP", Probe{HTTP: &HTTPGet{Port: gibberish}}, `GET http://127.0.0.1:PORT/: malformed HTTP response "SSH-2.0-OpenSSH_9.2"`},
		{"HTTPS of a plain server", Probe{HTTP: &HTTPGet{Scheme: "https", Port: portOf(plain.Listener.Addr())}},
			"GET https://127.0.0.1:PORT/: http: server gave HTTP response to HTTPS client"},
		{"HTTP of a TLS server", Probe{HTTP: &HTTPGet{Port: portOf(secure.Listener.Addr())}},
			"GET http://127.0.0.1:PORT/: 400 Bad Request: Client sent an HTTP request to an HTTPS server."},
		{"no such host", Probe{TCP: &TCPSocket{Host: "app.invalid", Port: 80}}, "TCP app.invalid:80: no such host app.invalid"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := ask(t, tt.probe, "127.0.0.1")
			var port uint16
			switch {
			case tt.probe.HTTP != nil:
				port = tt.probe.HTTP.Port
			case tt.probe.TCP != nil:
				port = tt.probe.TCP.Port
			default:
				port = tt.probe.GRPC.Port
			}
			if want := strings.ReplaceAll(tt.want, "PORT", fmt.Sprint(port)); got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestTCPPassesWhenItConnects(t *testing.T) {
	from := make(chan string, 1)
	port := serve(t, func(conn net.Conn) { from <- conn.RemoteAddr().(*net.TCPAddr).IP.String() })
	if reason := ask(t, Probe{TCP: &TCPSocket{Port: port}}, "127.0.0.1"); reason != "" {
		t.Fatal(reason)
	}
	if got := <-from; got != "127.0.0.6" {
		t.Errorf("came from %s, want 127.0.0.6", got)
	}
}

// The whole way once, with real time and a real server: app up, app down, app up again.
func TestADeadApplicationIsReportedAndItsReturnToo(t *testing.T) {
	l, err := net.Listen("tcp", "127.88.77.66:0") // an address of our own: the port is still free when the app comes back
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr()
	app := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	go app.Serve(l)
	reports := make(chan Report, 10)
	c, err := New(Config{
		Probe:      Probe{HTTP: &HTTPGet{Path: "/healthz", Port: portOf(address)}, Period: 5 * time.Millisecond, Timeout: 10 * time.Second, FailureThreshold: 3},
		InstanceIP: netip.MustParseAddr("127.88.77.66"),
		OnReport:   func(r Report) { reports <- r },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer running(t, c)()
	next := func(healthy bool, reason string) {
		t.Helper()
		select {
		case r := <-reports:
			if r.Healthy != healthy || r.Reason != reason {
				t.Fatalf("reported %v %q, want %v %q", r.Healthy, r.Reason, healthy, reason)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no report, want %v %q", healthy, reason)
		}
	}
	target := fmt.Sprintf("GET http://%s/healthz", address)
	next(true, target+" succeeded")
	app.Close()
	next(false, target+": connection refused")
	if l, err = net.Listen("tcp", address.String()); err != nil {
		t.Fatal(err)
	}
	app = &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	defer app.Close()
	go app.Serve(l)
	next(true, target+" succeeded")
}
