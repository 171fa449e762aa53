package testbed

import (
	"fmt"
	"net/http"
	"testing"
)

// App is an application on a machine: an HTTP server that says which machine it is on, and 200 to every probe.
type App struct {
	vm     *VM
	port   int
	server *http.Server
}

// App starts the application. It ends with the test.
func (v *VM) App(t testing.TB, port int) *App {
	t.Helper()
	a := &App{vm: v, port: port}
	a.Start(t)
	t.Cleanup(a.Kill)
	return a
}

// Start starts the application again after Kill.
func (a *App) Start(t testing.TB) {
	t.Helper()
	l, err := a.vm.Listen(fmt.Sprintf("0.0.0.0:%d", a.port))
	if err != nil {
		t.Fatal(err)
	}
	a.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", a.vm.Name(), r.URL.Path)
	})}
	go a.server.Serve(l) // returns when the server is closed
}

// Kill ends the application with its connections: from then on the port refuses.
func (a *App) Kill() { a.server.Close() }
