// Package lives keeps two machines with certificates of twenty seconds going for minutes, while istiod is killed and started again all the time. It is a
// package of its own because it takes so long: others run beside it.
package lives

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

const (
	// lastsVar is for those who want to see it for longer: WINGMAN_LIVES=10m.
	lastsVar = "WINGMAN_LIVES"

	life  = 20 * time.Second
	kills = 28 * time.Second // every 30 s at the latest, and not in step with renewals, which are every ten
	away  = 3 * time.Second  // of the ten between a renewal's date and the end
	looks = 100 * time.Millisecond

	// renewed is how far apart renewals are at most on average: ten seconds, and the time that istiod is away.
	renewed = 12 * time.Second
)

// handshakes has every tenth request make a new connection between the Envoys.
const handshakes = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: catalog, namespace: istioinaction}
spec:
  host: catalog.istioinaction.svc.cluster.local
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 10}}}
`

// Never is an expired certificate in use, never a pair on disk that does not match, and no request fails.
func TestShortLivesUnderAnIstiodThatKeepsDying(t *testing.T) {
	lasts := 3 * time.Minute
	if asked := os.Getenv(lastsVar); asked != "" {
		var err error
		if lasts, err = time.ParseDuration(asked); err != nil {
			t.Fatalf("%s: %v", lastsVar, err)
		}
	}
	p := testbed.NewPair(t, mesh.Options{Objects: handshakes}, fmt.Sprintf("SECRET_TTL=%s\n", life))
	load := p.Client.Load(t, testbed.PairHost, "/lives")
	var watches []*watch
	for _, vm := range []*testbed.VM{p.Client, p.Server} {
		watches = append(watches, start(t, vm.Name()+", on disk", onDisk(t, vm)), start(t, vm.Name()+", in use", inUse(t, p, vm)))
	}

	began := time.Now()
	next := time.NewTicker(kills)
	defer next.Stop()
	for time.Since(began) < lasts {
		<-next.C
		p.Mesh.KillIstiod()
		killed := time.Now()
		<-time.After(away)
		if err := p.Mesh.StartIstiod(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("after %.0f s istiod was away for %.1f s", killed.Sub(began).Seconds(), time.Since(killed).Seconds())
	}

	o := load.Stop()
	t.Logf("%s of certificates that live for %s: %v", lasts, life, o)
	if o.Failed() > 0 {
		t.Error("requests failed")
	}
	for _, w := range watches {
		w.stop()
		t.Logf("%s: %d certificates in %d looks, at least %.1f s before their end", w.what, len(w.serials), w.looks, w.least.Seconds())
		if least := int(lasts/looks) / 2; w.looks < least { // of ten a second: a look takes its time on a machine that does other things
			t.Errorf("%s: %d looks, want at least %d", w.what, w.looks, least)
		}
		if len(w.bad) > 0 {
			t.Errorf("%s: %d of %d looks were bad:\n%s", w.what, len(w.bad), w.looks, strings.Join(w.bad[:min(len(w.bad), 10)], "\n"))
		}
		if want := int(lasts / renewed); len(w.serials) < want {
			t.Errorf("%s: %d certificates in %s, want at least %d", w.what, len(w.serials), lasts, want)
		}
	}
	log, err := os.ReadFile(p.Mesh.IstiodLog())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(log), "certificate has expired") {
		t.Error("istiod was shown an expired certificate")
	}
}

// A watch looks at certificates ten times a second.
type watch struct {
	what   string
	cancel context.CancelFunc
	ended  sync.WaitGroup

	// To be read after stop.
	looks   int
	serials map[string]bool
	least   time.Duration // of life left that was seen
	bad     []string
}

// look is the serial number and the end of what is there now.
type look func(ctx context.Context) (serial string, notAfter time.Time, err error)

func start(t *testing.T, what string, see look) *watch {
	ctx, cancel := context.WithCancel(t.Context())
	w := &watch{what: what, cancel: cancel, serials: map[string]bool{}, least: life}
	w.ended.Go(func() {
		tick := time.NewTicker(looks)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			w.note(see(ctx))
			if ctx.Err() != nil { // that look was cut off
				return
			}
		}
	})
	t.Cleanup(w.stop)
	return w
}

func (w *watch) stop() {
	w.cancel()
	w.ended.Wait()
}

func (w *watch) note(serial string, notAfter time.Time, err error) {
	now := time.Now()
	left := notAfter.Sub(now)
	if err == nil && left <= 0 {
		err = fmt.Errorf("%s has expired %s ago", serial, -left)
	}
	if errors.Is(err, context.Canceled) {
		return
	}
	w.looks++
	if err != nil {
		w.bad = append(w.bad, fmt.Sprintf("%s: %v", now.Format("15:04:05.000"), err))
		return
	}
	w.serials[serial] = true
	w.least = min(w.least, left)
}

// inUse is what a machine's Envoy shows to others, by the secret that SDS has served it.
func inUse(t *testing.T, p *testbed.Pair, vm *testbed.VM) look {
	return func(ctx context.Context) (string, time.Time, error) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		shown, err := p.Shown(ctx, vm)
		if err != nil {
			return "", time.Time{}, err
		}
		return shown.SerialNumber.Text(16), shown.NotAfter, nil
	}
}

// onDisk is the pair in /etc/certs.
func onDisk(t *testing.T, vm *testbed.VM) look {
	return func(context.Context) (serial string, notAfter time.Time, err error) {
		err = vm.Visit(func() error {
			pair, err := loadPair("/etc/certs/cert-chain.pem", "/etc/certs/key.pem")
			if err != nil {
				return err
			}
			serial, notAfter = pair.Leaf.SerialNumber.Text(16), pair.Leaf.NotAfter
			return nil
		})
		return serial, notAfter, err
	}
}

// loadPair reads a pair that may be replaced meanwhile: while the key is the same before and after it, the chain is of the same moment.
func loadPair(chainFile, keyFile string) (tls.Certificate, error) {
	for {
		key, err := os.ReadFile(keyFile)
		if err != nil {
			return tls.Certificate{}, err
		}
		chain, err := os.ReadFile(chainFile)
		if err != nil {
			return tls.Certificate{}, err
		}
		again, err := os.ReadFile(keyFile)
		if err != nil {
			return tls.Certificate{}, err
		}
		if string(again) == string(key) {
			return tls.X509KeyPair(chain, key)
		}
	}
}
