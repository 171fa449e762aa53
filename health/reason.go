package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
)

// plain says in a few words what became of a connection: no layers that repeat what the reason names already. within is
// the time there was, connected whether the other side had taken the connection by then.
//
// `Get "http://…": dial tcp 127.0.0.6:0->10.99.0.2:8080: connect: connection refused` becomes "connection refused".
func plain(err error, within time.Duration, connected bool) string {
	var (
		byURL *url.Error
		op    *net.OpError
		dns   *net.DNSError
		call  *os.SyscallError
		errno syscall.Errno
		late  interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("no such host %s", dns.Name)
	case errors.As(err, &dns):
		return fmt.Sprintf("look up %s: %s", dns.Name, dns.Err)
	case errors.Is(err, context.DeadlineExceeded) || errors.As(err, &late) && late.Timeout():
		if connected {
			return fmt.Sprintf("connected, but no answer within %s", within)
		}
		return fmt.Sprintf("no connection within %s", within)
	case errors.As(err, &call) && errors.As(call.Err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return "connection closed without an answer"
	case errors.As(err, &op) && op.Err != nil:
		return op.Err.Error()
	case errors.As(err, &byURL) && byURL.Err != nil:
		err = byURL.Err
	}
	text := strings.TrimPrefix(err.Error(), "net/http: HTTP/1.x transport connection broken: ")
	if strings.HasPrefix(text, "readLoopPeekFail") { // what net/http makes of SSH, SMTP and others who greet first
		return "the server speaks before it is asked: this is not HTTP"
	}
	return text
}

// allowance is the time that is left of ctx, rounded for people.
func allowance(ctx context.Context) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return 0
	}
	left := time.Until(deadline)
	if left > 100*time.Millisecond {
		return left.Round(10 * time.Millisecond)
	}
	return left.Round(time.Millisecond)
}
