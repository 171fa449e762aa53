package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// controlSocket takes wishes of root and of this process's user: POST /replace?running=PROGRAM. The answer, a sentence, comes when it is done.
const controlSocket = "control.sock"

// replaceMost bounds a replacement: the trial, the handover, the end and the start of an Envoy, each with a bound of its own.
const replaceMost = 75 * time.Second

// listen serves the control socket until the function that it returns is called.
func (s *Supervisor) listen() (end func()) {
	path := filepath.Join(s.cfg.RunDir, controlSocket)
	_ = os.Remove(path) // of a supervisor that was killed; the lock is ours
	l, err := net.Listen("unix", path)
	if err == nil {
		if err = os.Chmod(path, 0o600); err != nil {
			l.Close()
		}
	}
	if err != nil {
		s.log.Warn("Envoy can only be replaced by a restart of wingman proxy", "cause", err)
		return func() {}
	}
	ended := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /replace", func(w http.ResponseWriter, r *http.Request) {
		said, err := s.replace(ended, r.URL.Query().Get("running"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		fmt.Fprintln(w, said)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l) // ends with Shutdown
	}()
	return func() {
		close(ended)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = server.Shutdown(ctx)
		_ = server.Close()
		<-done
	}
}

// replace hands a wish to Run's goroutine and waits for what becomes of it. Who wished may go away meanwhile: it goes on.
func (s *Supervisor) replace(ended <-chan struct{}, running string) (string, error) {
	result := make(chan replaced, 1)
	select {
	case s.wishes <- &replacement{running: running, result: result}:
	case <-ended:
		return "", errStopped
	}
	select {
	case r := <-result:
		return r.said, r.err
	case <-ended: // settled just now, if it was taken in
		select {
		case r := <-result:
			return r.said, r.err
		default:
			return "", errStopped
		}
	}
}

// Replace has the supervisor of runDir put the Envoy that the settings name in the place of the one that runs, and returns what it says of that
// once it is done. With running, only an Envoy of that program is replaced, and only where another file lies there now. An error says why the
// one that runs stays, or that there is no supervisor (ErrNoProxy).
func Replace(ctx context.Context, runDir, running string) (said string, err error) {
	ctx, cancel := context.WithTimeout(ctx, replaceMost)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(runDir, controlSocket))
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://proxy/replace?"+url.Values{"running": {running}}.Encode(), nil)
	if err != nil {
		return "", err
	}
	res, err := client.Do(req)
	if errors.Is(err, fs.ErrNotExist) {
		if alive, aliveErr := supervised(runDir); aliveErr == nil && alive {
			return "", errors.New("wingman proxy is of an earlier version, which cannot replace Envoy: systemctl restart wingman-proxy does, and breaks connections")
		}
		return "", ErrNoProxy
	}
	if err != nil {
		return "", fmt.Errorf("ask wingman proxy: %w", err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<14))
	if err != nil {
		return "", fmt.Errorf("ask wingman proxy: %w", err)
	}
	if said = strings.TrimSpace(string(text)); res.StatusCode != http.StatusOK {
		return "", errors.New(said)
	}
	return said, nil
}
