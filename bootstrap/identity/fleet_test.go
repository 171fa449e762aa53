package identity

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A fleet is many machines that start in the same moment, in simulated time, and have one CA, which gives a certificate to so many of a hundred machines in a
// second and answers refusal to what is beyond that.
type fleet struct {
	share   int
	refusal codes.Code
	life    time.Duration // of a certificate
	lasts   time.Duration
}

// A fleet's size. All of -fleet 2000 take a quarter of a minute of a processor, and four times that with the race detector.
var fleetSize = flag.Int("fleet", 400, "machines of TestAFleetIsSpread")

// A fleetCA is what the machines of a fleet reach at the other end of createFunc.
type fleetCA struct {
	fleet
	t     *testing.T
	root  *authority
	began time.Time

	mu     sync.Mutex // guards everything below
	served map[time.Duration]int
}

// run is when each machine asked, from the start on: a row for each.
func (f fleet) run(t *testing.T) [][]time.Duration {
	t.Helper()
	asked := make([][]time.Duration, *fleetSize)
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		ca := &fleetCA{fleet: f, t: t, root: newAuthority(t, "cluster.local", now, 1000*time.Hour, nil), began: now, served: map[time.Duration]int{}}
		files := newMachine(t, &testCA{root: ca.root}) // the same token and root for all
		putFile(t, files.token, token(now.Add(time.Hour), nil))
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		for i := range *fleetSize {
			m, err := New(Config{
				CAAddress: testServer + ":15012", SPIFFEID: testID, Key: KeyOptions{Algorithm: "ECDSA"}, TTL: f.life,
				TokenFile: files.token, RootFile: files.rootCert, StateDir: files.state,
			})
			if err != nil {
				t.Fatal(err)
			}
			m.disk, m.newWatch = noDisk, func(*slog.Logger) watch { return testWatch(nil) }
			m.newClock = func(*slog.Logger) clockWatch { return testWatch(nil) }
			m.create = func(_ context.Context, _ proof, csr []byte, _ func([]*x509.Certificate) error) ([]string, error) {
				asked[i] = append(asked[i], time.Since(now))
				return ca.create(csr)
			}
			running.Go(func() {
				if err := m.Run(ctx); err != nil {
					t.Error(err)
				}
				if m.Current() == nil {
					t.Error("a machine has no certificate")
				}
			})
		}
		<-time.After(f.lasts)
		synctest.Wait()
		cancel()
		running.Wait()
	})
	return asked
}

func (ca *fleetCA) create(csr []byte) ([]string, error) {
	second := time.Since(ca.began).Truncate(time.Second)
	ca.mu.Lock()
	ca.served[second]++
	refused := ca.served[second] > ca.share**fleetSize/100
	ca.mu.Unlock()
	if refused {
		return nil, &callError{rpc: status.Error(ca.refusal, "too many requests")}
	}
	block, _ := pem.Decode(csr)
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	leaf := issue(ca.t, workloadTemplate(testID, time.Now(), ca.life), request.PublicKey, ca.root, nil)
	return []string{string(encodeCertificates([]*x509.Certificate{leaf})), ca.root.pem()}, nil
}

// noDisk keeps nothing: a fleet's stores would all be on one disk.
var noDisk = disk{
	mkdir:     func(string) error { return nil },
	create:    func(string, []byte) error { return nil },
	sync:      func(string) error { return nil },
	rename:    func(string, string) error { return nil },
	exchange:  func(string, string) error { return nil },
	symlink:   func(string, string) error { return nil },
	removeAll: func(string) error { return nil },
	volatile:  func(string) bool { return false },
}

// Many machines start at once. Those that the CA refuses do not come back at once: their second requests are spread evenly, and so
// are the renewals of certificates that were all given in the same second.
func TestAFleetIsSpread(t *testing.T) {
	tests := []struct {
		name  string
		fleet fleet
		span  time.Duration // the second requests are spread over at least that
	}{
		{"5 % a second, then RESOURCE_EXHAUSTED", fleet{5, codes.ResourceExhausted, time.Hour, 2 * time.Minute}, 9 * time.Second},
		{"5 % a second, then UNAVAILABLE", fleet{5, codes.Unavailable, time.Hour, 2 * time.Minute}, 5 * time.Second},
		{"all at once, and renewed after 5 of 10 minutes", fleet{100, codes.OK, 10 * time.Minute, 6 * time.Minute}, 11 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var all, second []time.Duration
			for _, times := range tt.fleet.run(t) {
				all = append(all, times...)
				if len(times) > 1 {
					second = append(second, times[1])
				}
			}
			span, peak := spread(second)
			t.Logf("%d requests; the %d second ones within %.1f s, the fullest tenth of that %.2f times the mean\n%s",
				len(all), len(second), span.Seconds(), peak, histogram(all))
			if span < tt.span || peak > 2 {
				t.Errorf("second requests: over %v, peak %.2f; want at least %v, at most 2", span, peak, tt.span)
			}
			for second, n := range seconds(all) {
				if second > 0 && 100*n > 30**fleetSize {
					t.Errorf("%d requests in second %d: a second wave", n, second)
				}
			}
		})
	}
}

// spread is the time over which requests came, and how many times the mean came in the fullest tenth of it.
func spread(times []time.Duration) (span time.Duration, peak float64) {
	slices.Sort(times)
	first := times[0]
	span = times[len(times)-1] - first
	var tenths [10]int
	for _, at := range times {
		tenths[min(9, 10*(at-first)/max(span, 1))]++
	}
	return span, float64(slices.Max(tenths[:])) / float64(len(times)) * 10
}

// seconds is how many requests came in which second.
func seconds(times []time.Duration) map[int]int {
	rows := map[int]int{}
	for _, at := range times {
		rows[int(at/time.Second)]++
	}
	return rows
}

// histogram has a line for each second in which requests came.
func histogram(times []time.Duration) string {
	rows := seconds(times)
	var b strings.Builder
	for at := range 1 + int(slices.Max(times)/time.Second) {
		if n := rows[at]; n > 0 {
			fmt.Fprintf(&b, "%5d s %5d %s\n", at, n, strings.Repeat("#", (n*80+*fleetSize-1) / *fleetSize))
		}
	}
	return b.String()
}
