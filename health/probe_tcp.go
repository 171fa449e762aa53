package health

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strconv"
)

// tcpCheck opens a connection and closes it again.
type tcpCheck struct {
	host string
	port uint16
}

func newTCPCheck(s TCPSocket, defaultHost string) *tcpCheck {
	return &tcpCheck{host: cmp.Or(s.Host, defaultHost), port: s.Port}
}

func (c *tcpCheck) kind() string { return "tcp" }

func (c *tcpCheck) target() string {
	return "TCP " + net.JoinHostPort(c.host, strconv.Itoa(int(c.port)))
}

func (c *tcpCheck) run(ctx context.Context) error {
	within := allowance(ctx)
	conn, err := systemDialer.connect(ctx, c.host, c.port)
	if err != nil {
		return fmt.Errorf("%s: %s", c.target(), plain(err, within, false))
	}
	conn.Close() // it was opened: that is the answer
	return nil
}
