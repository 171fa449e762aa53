package dnsproxy

// suspectLoopLocked is called when an equal question comes while fl is upstream.
func (f *forwarder) suspectLoopLocked(fl *flight) {}
