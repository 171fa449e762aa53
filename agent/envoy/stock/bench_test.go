package stock

import (
	"fmt"
	"runtime"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// pushOf repeats the resources of a fixture until the response has about 10 MB.
func pushOf(b *testing.B, name string) []byte {
	b.Helper()
	m := decode(b, fixture(b, name))
	one := m.Resources
	size := proto.Size(m)
	for n := 0; size*(n+1) < 10<<20; n++ {
		for _, r := range one {
			m.Resources = append(m.Resources, &discoveryv3.Resource{Name: fmt.Sprintf("%s-%d", r.Name, n), Version: r.Version, Resource: r.Resource})
		}
	}
	return encode(b, m)
}

// received is a response as gRPC has it: in frames of HTTP/2, in memory that is used again.
func received(b []byte) (s mem.BufferSlice) {
	pool := mem.DefaultBufferPool()
	for len(b) > 0 {
		frame := pool.Get(min(len(b), pieceSize))
		b = b[copy(*frame, b):]
		s = append(s, mem.NewBuffer(frame, pool))
	}
	return s
}

// ns/MB is the figure to compare: of rewriting (and one copy, to have something to rewrite), of decoding the same push into go-control-plane's types and encoding it again (filters in
// nested Anys not even looked at), and of copying it.
func BenchmarkResponse(b *testing.B) {
	for _, name := range []string{fixtureCDS, fixtureLDS, fixtureRDS} {
		frame := pushOf(b, name)
		r := New(stockEnvoy(b))
		ways := []struct {
			name string
			do   func() error
		}{
			{"rewrite", func() error {
				out, _, err := r.Rewrite(urlOf(name), true, received(frame))
				out.Free()
				return err
			}},
			{"decode", func() error {
				m := new(discoveryv3.DeltaDiscoveryResponse)
				if err := proto.Unmarshal(frame, m); err != nil {
					return err
				}
				for _, x := range m.Resources {
					inner, err := x.Resource.UnmarshalNew()
					if err != nil {
						return err
					}
					if x.Resource.Value, err = proto.Marshal(inner); err != nil {
						return err
					}
				}
				_, err := proto.Marshal(m)
				return err
			}},
			{"copy", func() error { runtime.KeepAlive(append([]byte(nil), frame...)); return nil }},
		}
		for _, way := range ways {
			b.Run(name+"/"+way.name, func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(int64(len(frame)))
				for b.Loop() {
					if err := way.do(); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(float64(len(frame))/1e6), "ns/MB")
			})
		}
	}
}

func BenchmarkFromRequest(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		stockEnvoy(b)
	}
}
