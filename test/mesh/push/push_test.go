package push

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"wingman/test/mesh"
	"wingman/test/mesh/testbed"
)

func TestMain(m *testing.M) { testbed.Main(m) }

const (
	// changes is how many changes of one service a round measures for each way.
	changes = 5
	// rest is how long an agent is left alone before its memory is read again: both give some back once a minute or so.
	rest = 75 * time.Second

	worldTimeout = 3 * time.Minute
	stepTimeout  = time.Minute
)

// BenchmarkPush prints tables when it is done; one iteration is one round, in which each way has its turn: -benchtime 7x.
func BenchmarkPush(b *testing.B) {
	bed := testbed.New(b, mesh.Options{})
	ctx, cancel := context.WithTimeout(b.Context(), worldTimeout)
	defer cancel()
	if err := bed.Mesh.Kube.Apply(ctx, world()); err != nil {
		b.Fatal(err)
	}
	istio, us := istios(b, bed), ours(b, bed)
	ways := []*way{
		{name: "pilot-agent", agent: istio, as: asStock},
		{name: "wingman, bytes", agent: us, as: asIstios},
		{name: "wingman, filters out", agent: us, as: asStock},
	}
	r := rounds{bed: bed}
	r.warmUp(b, ways[0])
	load := loadAverage(b)
	for first := 0; b.Loop(); first++ {
		for i := range ways {
			r.round(b, ways[(first+i)%len(ways)])
		}
	}
	report(os.Stdout, ways)
	r.atRest(b, ways[:2])
	fmt.Printf("load average of the machine: %s before, %s after\n", load, loadAverage(b))
}

// A way is one way of a push to Envoy.
type way struct {
	name  string
	agent *agent
	as    func(*testing.B, *corev3.Node) *corev3.Node // gives Envoy's node the extensions of a build

	taken map[string][]figure // by step
	sizes map[string]int      // bytes of the first push, by type
	again int                 // streams that istiod refused, see istiodRaces
}

// The steps of a round.
const (
	stepFirst  = "first push"
	stepChange = "one service changes"
	stepAgain  = "Envoy comes again"
)

// figure is what one push took.
type figure struct {
	cpu      time.Duration // of the agent
	until    time.Duration // the player had it
	resident int           // bytes, when the agent had come to rest
	peak     int           // bytes
	size     int           // bytes that the player received
}

// rounds runs the ways against one control plane.
type rounds struct {
	bed     *testbed.Bed
	changed int // services that have come so far
}

// warmUp waits until istiod has all services: it takes them in over several pushes.
func (r *rounds) warmUp(b *testing.B, w *way) {
	p, node := w.ready(b)
	defer w.agent.stop()
	pl, err := play(b.Context(), node, w.agent.dial)
	if err != nil {
		b.Fatal(err)
	}
	defer pl.close()
	all := map[string]bool{}
	err = pl.until(b.Context(), 0, func(had []arrival) bool {
		for _, a := range had {
			if a.typeURL == typeCluster {
				for _, name := range a.resources {
					all[name] = true
				}
			}
		}
		return len(all) > services
	})
	if err != nil {
		b.Fatalf("wait until istiod has %d services: %v", services, err)
	}
	if _, err := p.settle(b.Context()); err != nil {
		b.Fatal(err)
	}
}

// ready starts a way's agent, waits until it has come to rest, and returns it with the node that its Envoy has.
func (w *way) ready(b *testing.B) (process, *corev3.Node) {
	p := w.agent.start(b)
	node := w.as(b, w.agent.node(b))
	if _, err := p.settle(b.Context()); err != nil {
		b.Fatal(err)
	}
	return p, node
}

// round measures one way: a fresh agent's first push, some changes, and the push to an Envoy that was started again.
func (r *rounds) round(b *testing.B, w *way) {
	p, node := w.ready(b)
	defer w.agent.stop()
	if w.taken == nil {
		w.taken = map[string][]figure{}
	}
	for _, step := range []string{stepFirst, stepAgain} {
		pl := r.whole(b, w, p, node, step)
		if step == stepFirst {
			for range changes {
				r.change(b, w, p, pl)
			}
		}
		if err := pl.close(); err != nil {
			b.Fatal(err)
		}
		if _, err := p.settle(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// istiodRaces is in the error of a stream that istiod refuses because it still writes the end of the one before into the WorkloadEntry. It is
// istiod's own, and Envoy comes back.
const istiodRaces = "Operation cannot be fulfilled"

// whole measures the push of everything to an Envoy that opens a stream, and returns that.
func (r *rounds) whole(b *testing.B, w *way, p process, node *corev3.Node, step string) *player {
	for {
		var pl *player
		f, err := measure(b.Context(), p, func(ctx context.Context) (had []arrival, err error) {
			if pl, err = play(b.Context(), node, w.agent.dial); err != nil {
				return nil, err
			}
			err = pl.until(ctx, 0, func(had []arrival) bool {
				return slices.ContainsFunc(had, func(a arrival) bool { return a.typeURL == typeRoute }) // the last of Envoy's types
			})
			return pl.seen(0), err
		})
		if err == nil {
			w.sizes = map[string]int{}
			for _, a := range pl.seen(0) {
				w.sizes[a.typeURL] += a.bytes
			}
			w.taken[step] = append(w.taken[step], f)
			return pl
		}
		if !strings.Contains(err.Error(), istiodRaces) {
			b.Fatalf("%s: %s: %v", w.name, step, err)
		}
		w.again++
		if _, err := p.settle(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// change measures the push after one service came and another went.
func (r *rounds) change(b *testing.B, w *way, p process, pl *player) {
	yaml, cluster := change(r.changed)
	r.changed++
	from := len(pl.seen(0))
	f, err := measure(b.Context(), p, func(ctx context.Context) ([]arrival, error) {
		if err := r.bed.Mesh.Kube.Apply(ctx, yaml); err != nil {
			return nil, err
		}
		err := pl.until(ctx, from, func(had []arrival) bool {
			has := func(typeURL string) bool {
				return slices.ContainsFunc(had, func(a arrival) bool { return a.typeURL == typeURL })
			}
			return has(typeRoute) && slices.ContainsFunc(had, func(a arrival) bool { return slices.Contains(a.resources, cluster) })
		})
		return pl.seen(from), err
	})
	if err != nil {
		b.Fatalf("%s: %s: %v", w.name, stepChange, err)
	}
	w.taken[stepChange] = append(w.taken[stepChange], f)
}

// measure takes the account of a process over a push, which returns what the player got of it.
func measure(ctx context.Context, p process, push func(context.Context) ([]arrival, error)) (f figure, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if err := p.resetPeak(); err != nil {
		return f, err
	}
	before, err := p.cpu()
	if err != nil {
		return f, err
	}
	began := time.Now()
	had, err := push(ctx)
	if err != nil {
		return f, err
	}
	for _, a := range had {
		f.until = max(f.until, a.at.Sub(began))
		f.size += a.bytes
	}
	after, err := p.settle(ctx)
	if err != nil {
		return f, err
	}
	f.cpu = after - before
	f.resident, f.peak, err = p.memory()
	return f, err
}

// atRest prints what agents keep of a push's memory, each with its Envoy connected.
func (r *rounds) atRest(b *testing.B, ways []*way) {
	var agents []process
	for _, w := range ways {
		p, node := w.ready(b)
		defer w.agent.stop()
		pl := r.whole(b, w, p, node, "at rest")
		defer pl.close()
		agents = append(agents, p)
	}
	select {
	case <-time.After(rest):
	case <-b.Context().Done():
	}
	for i, p := range agents {
		now, _, err := p.memory()
		if err != nil {
			b.Fatal(err)
		}
		fmt.Printf("resident %s after a first push: %-22s %5.1f MB\n", rest, ways[i].name, float64(now)/1e6)
	}
}

// loadAverage is that of the last minute: other work on the machine makes times and ratios doubtful.
func loadAverage(b *testing.B) string {
	s, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		b.Fatal(err)
	}
	return strings.Fields(string(s))[0]
}
