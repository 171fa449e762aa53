package child

// An Output keeps one end of what is written to it. It never fails and never blocks. Not safe for concurrent use: read it after Run.
type Output struct {
	most  int
	atEnd bool
	buf   []byte // at most most bytes
}

// Beginning keeps the first most bytes.
func Beginning(most int) *Output { return &Output{most: most} }

// End keeps the last most bytes.
func End(most int) *Output { return &Output{most: most, atEnd: true} }

// Write takes all of p.
func (o *Output) Write(p []byte) (int, error) {
	n := len(p)
	if o.atEnd {
		p = p[max(0, len(p)-o.most):]
		o.buf = append(o.buf[:0], o.buf[max(0, len(o.buf)+len(p)-o.most):]...)
	}
	o.buf = append(o.buf, p[:min(len(p), o.most-len(o.buf))]...)
	return n, nil
}

// Bytes is what was kept; the caller may keep it.
func (o *Output) Bytes() []byte { return o.buf }
