package push

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"time"
)

// row is one line of a table: a way in a step.
type row struct {
	name                         string
	cpu, cpuLeast, cpuMost       time.Duration
	ratio                        float64 // of the median, to that of the first way
	until                        time.Duration
	peak, peakMost, resident, of float64 // MB; of: what the player received
}

// rows sums up the figures of each way in one step. Medians: one garbage collection or one busy moment of the machine is not the rule.
func rows(names []string, figures [][]figure) (list []row) {
	for i, f := range figures {
		r := row{
			name:     names[i],
			cpu:      median(f, func(f figure) time.Duration { return f.cpu }),
			until:    median(f, func(f figure) time.Duration { return f.until }),
			peak:     megabytes(median(f, func(f figure) int { return f.peak })),
			resident: megabytes(median(f, func(f figure) int { return f.resident })),
			of:       megabytes(median(f, func(f figure) int { return f.size })),
		}
		for j, x := range f {
			if j == 0 || x.cpu < r.cpuLeast {
				r.cpuLeast = x.cpu
			}
			r.cpuMost = max(r.cpuMost, x.cpu)
			r.peakMost = max(r.peakMost, megabytes(x.peak))
		}
		r.ratio = 1
		if i > 0 {
			r.ratio = float64(r.cpu) / float64(list[0].cpu)
		}
		list = append(list, r)
	}
	return list
}

func median[T cmp.Ordered](f []figure, of func(figure) T) T {
	var all []T
	for _, x := range f {
		all = append(all, of(x))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func megabytes(n int) float64 { return float64(n) / 1e6 }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// report prints a table for each step, as Markdown.
func report(w io.Writer, ways []*way) {
	for _, step := range []string{stepFirst, stepChange, stepAgain} {
		var names []string
		var figures [][]figure
		for _, x := range ways {
			names, figures = append(names, x.name), append(figures, x.taken[step])
		}
		list := rows(names, figures)
		fmt.Fprintf(w, "\n%s: %.1f MB to Envoy, %d times\n\n", step, list[0].of, len(figures[0]))
		fmt.Fprintln(w, "| | CPU ms (least–most) | ratio | peak MB (most) | resident MB | ms until Envoy has it |")
		fmt.Fprintln(w, "|---|---|---|---|---|---|")
		for _, r := range list {
			fmt.Fprintf(w, "| %s | %.1f (%.1f–%.1f) | %.2f | %.1f (%.1f) | %.1f | %.0f |\n", r.name, milliseconds(r.cpu),
				milliseconds(r.cpuLeast), milliseconds(r.cpuMost), r.ratio, r.peak, r.peakMost, r.resident, milliseconds(r.until))
		}
	}
	fmt.Fprintln(w)
	for _, x := range ways {
		if x.again > 0 {
			fmt.Fprintf(w, "%s: %d streams were refused by istiod and opened again\n", x.name, x.again)
		}
	}
	for _, typeURL := range []string{typeCluster, typeEndpoint, typeListener, typeRoute} {
		fmt.Fprintf(w, "%s of the first push: %.2f MB from pilot-agent, %.2f with the filters out\n",
			typeURL[len("type.googleapis.com/"):], megabytes(ways[0].sizes[typeURL]), megabytes(ways[2].sizes[typeURL]))
	}
}
