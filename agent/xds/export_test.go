package xds

// Names of metrics, for tests.
const (
	MetricEnds        = metricEnds
	MetricEnvoyStalls = metricEnvoyStalls
)

// LimitUnread bounds what waits for an Envoy that does not read. To be called before there is one.
func (c *Client) LimitUnread(bytes int) { c.mostUnread = bytes }
