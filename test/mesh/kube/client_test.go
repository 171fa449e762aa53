package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
)

// server answers as an API server does, from a script: "METHOD path?query" → body; it fails the test on anything else.
type server struct {
	t      *testing.T
	script map[string]func(w http.ResponseWriter, body string)

	mu    sync.Mutex
	calls []string // guarded by mu
}

func newServer(t *testing.T, script map[string]func(http.ResponseWriter, string)) (*server, *Client) {
	t.Helper()
	s := &server{t: t, script: script}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	return s, New(h.URL, "secret", nil)
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call := r.Method + " " + r.URL.RequestURI()
	s.mu.Lock()
	s.calls = append(s.calls, call)
	s.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	if r.Header.Get("Authorization") != "Bearer secret" {
		s.t.Errorf("%s came without the token", call)
	}
	f, ok := s.script[call]
	if !ok {
		s.t.Errorf("nobody expected %s with %s", call, body)
		w.WriteHeader(http.StatusTeapot)
		return
	}
	f(w, string(body))
}

func says(text string) func(http.ResponseWriter, string) {
	return func(w http.ResponseWriter, _ string) { fmt.Fprint(w, text) }
}

const discovery = `{"resources": [
	{"name": "things", "kind": "Thing", "namespaced": true}, {"name": "things/status", "kind": "Thing", "namespaced": true},
	{"name": "places", "kind": "Place", "namespaced": false}]}`

func TestApplySendsEachDocumentAndItsStatus(t *testing.T) {
	const query = "?fieldManager=wingman-tests&force=true"
	var got []string
	take := func(w http.ResponseWriter, body string) {
		got = append(got, body)
		fmt.Fprint(w, "{}")
	}
	s, c := newServer(t, map[string]func(http.ResponseWriter, string){
		"GET /apis/x.io/v1":                                           says(discovery),
		"PATCH /apis/x.io/v1/places/here" + query:                     take,
		"PATCH /apis/x.io/v1/namespaces/ns/things/one" + query:        take,
		"PATCH /apis/x.io/v1/namespaces/ns/things/one/status" + query: take,
	})
	place := "apiVersion: x.io/v1\nkind: Place\nmetadata: {name: here}\n"
	thing := "apiVersion: x.io/v1\nkind: Thing\nmetadata: {name: one, namespace: ns}\nstatus: {phase: Running}\n"
	if err := c.Apply(t.Context(), "\n---\n"+place+"---\n\n---\n"+thing); err != nil {
		t.Fatal(err)
	}
	if want := []string{place, thing, thing}; !slices.Equal(got, want) {
		t.Errorf("the server got %q, want %q", got, want)
	}
	if n := len(s.calls); n != 4 {
		t.Errorf("%d calls, want one discovery and three patches: %v", n, s.calls)
	}
}

func TestApplyRefusesWhatItCannotName(t *testing.T) {
	_, c := newServer(t, map[string]func(http.ResponseWriter, string){"GET /apis/x.io/v1": says(discovery)})
	for name, yaml := range map[string]string{
		"no YAML":                   "{",
		"no name":                   "apiVersion: x.io/v1\nkind: Thing\n",
		"an unknown kind":           "apiVersion: x.io/v1\nkind: Nothing\nmetadata: {name: a}\n",
		"no namespace where needed": "apiVersion: x.io/v1\nkind: Thing\nmetadata: {name: a}\n",
	} {
		if err := c.Apply(t.Context(), yaml); err == nil {
			t.Errorf("%s: applied", name)
		}
	}
}

func TestGetTellsAbsenceFromOtherErrors(t *testing.T) {
	refuse := func(code int) func(http.ResponseWriter, string) {
		return func(w http.ResponseWriter, _ string) {
			w.WriteHeader(code)
			fmt.Fprint(w, `{"message": "because"}`)
		}
	}
	_, c := newServer(t, map[string]func(http.ResponseWriter, string){
		"GET /api/v1":         says(`{"resources": [{"name": "nodes", "kind": "Node"}]}`),
		"GET /api/v1/nodes/a": refuse(http.StatusNotFound),
		"GET /api/v1/nodes/b": refuse(http.StatusForbidden),
	})
	for name, want := range map[string]bool{"a": true, "b": false} {
		_, err := c.Get(t.Context(), Ref{APIVersion: "v1", Kind: "Node", Name: name})
		if err == nil || errors.Is(err, ErrNotFound) != want || !strings.Contains(err.Error(), "because") {
			t.Errorf("node %s: error is %v; want ErrNotFound: %v, with the server's words", name, err, want)
		}
	}
}

func TestWaitSeesListAndEventsAndListsAgainWhenTheWatchEnds(t *testing.T) {
	watched := 0
	_, c := newServer(t, map[string]func(http.ResponseWriter, string){
		"GET /apis/x.io/v1": says(discovery),
		"GET /apis/x.io/v1/namespaces/ns/things?": says(`{"metadata": {"resourceVersion": "7"}, "items": [
			{"metadata": {"namespace": "ns", "name": "a"}}]}`),
		"GET /apis/x.io/v1/namespaces/ns/things?resourceVersion=7&watch=true": func(w http.ResponseWriter, _ string) {
			if watched++; watched == 1 {
				fmt.Fprint(w, `{"type": "ERROR", "object": {"code": 410}}`)
				return
			}
			fmt.Fprint(w, `{"type": "ADDED", "object": {"metadata": {"namespace": "ns", "name": "c"}}}`,
				`{"type": "DELETED", "object": {"metadata": {"namespace": "ns", "name": "a"}}}`,
				`{"type": "MODIFIED", "object": {"metadata": {"namespace": "ns", "name": "c"}, "spec": {"done": "yes"}}}`)
		},
	})
	var states []string
	got, err := c.Wait(t.Context(), Ref{APIVersion: "x.io/v1", Kind: "Thing", Namespace: "ns"}, func(all []Object) bool {
		var names []string
		for _, o := range all {
			names = append(names, o.Name()+o.String("spec", "done"))
		}
		states = append(states, strings.Join(names, ","))
		return states[len(states)-1] == "cyes"
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "a", "a,c", "c", "cyes"}; !slices.Equal(states, want) {
		t.Errorf("match was asked of %v, want %v", states, want)
	}
	if len(got) != 1 || got[0].Name() != "c" {
		t.Errorf("got %v, want c", got)
	}
}

func TestWaitThatEndsWithItsContextTellsWhatItSaw(t *testing.T) {
	_, c := newServer(t, map[string]func(http.ResponseWriter, string){
		"GET /apis/x.io/v1": says(discovery),
		"GET /apis/x.io/v1/places?fieldSelector=metadata.name%3Dhere": says(`{"metadata": {"resourceVersion": "1"}, "items": [
			{"metadata": {"name": "here"}, "status": {"conditions": [{"type": "Healthy", "status": "False", "message": "gone"}]}}]}`),
		"GET /apis/x.io/v1/places?fieldSelector=metadata.name%3Dhere&resourceVersion=1&watch=true": func(w http.ResponseWriter, _ string) {
			w.(http.Flusher).Flush() // and no event ever
			<-t.Context().Done()
		},
	})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := c.Wait(ctx, Ref{APIVersion: "x.io/v1", Kind: "Place", Name: "here"}, func(all []Object) bool {
		if status, message := all[0].Condition("Healthy"); status != "False" || message != "gone" {
			t.Errorf("condition is %q, %q", status, message)
		}
		cancel()
		return false
	})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), `"message":"gone"`) {
		t.Errorf("error is %v, want the context's with the object", err)
	}
}
