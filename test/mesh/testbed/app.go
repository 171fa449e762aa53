package testbed

import (
	"fmt"
	"net/http"
	"testing"

	"wingman/test/mesh/machine"
)

// App is an application on a machine: an HTTP server that says which machine it is on, and 200 to every probe.
type App struct {
	on     *machine.Machine
	port   int
	server *http.Server
}

// App starts the application. It ends with the test.
func (v *VM) App(t testing.TB, port int) *App {
	t.Helper()
	return startApp(t, v.Machine, port)
}

// App starts the application. It ends with the test.
func (p *Pod) App(t testing.TB, port int) *App {
	t.Helper()
	return startApp(t, p.Machine, port)
}

func startApp(t testing.TB, on *machine.Machine, port int) *App {
	t.Helper()
	a := &App{on: on, port: port}
	a.Start(t)
	t.Cleanup(a.Kill)
	return a
}

// Start starts the application again after Kill.
func (a *App) Start(t testing.TB) {
	t.Helper()
	l, err := a.on.Listen(fmt.Sprintf("0.0.0.0:%d", a.port))
	if err != nil {
		t.Fatal(err)
	}
	a.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", a.on.Name(), r.URL.Path)
	})}
	go a.server.Serve(l) // returns when the server is closed
}

// Kill ends the application with its connections: from then on the port refuses.
func (a *App) Kill() { a.server.Close() }
