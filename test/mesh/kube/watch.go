package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Wait watches what ref names, all objects of a kind or one, until match says that they are as they should be, and returns
// them then, sorted by name. match is called at once and after every change. When ctx ends first, the error has what was seen.
func (c *Client) Wait(ctx context.Context, ref Ref, match func([]Object) bool) ([]Object, error) {
	one := ref.Name
	ref.Name = ""
	path, err := c.path(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("wait for %s: %w", ref, err)
	}
	query := url.Values{}
	if one != "" {
		query.Set("fieldSelector", "metadata.name="+one)
	}
	var seen []Object
	for {
		w := watch{c: c, path: path, query: query, match: match}
		seen, err = w.run(ctx)
		if !errors.Is(err, errWatchEnded) {
			break
		}
	}
	if err != nil {
		ref.Name = one
		return seen, fmt.Errorf("wait for %s: %w; last seen: %s", ref, err, texts(seen))
	}
	return seen, nil
}

// errWatchEnded means that the server has closed the watch, as it does now and then: list again.
var errWatchEnded = errors.New("the watch has ended")

type watch struct {
	c     *Client
	path  string
	query url.Values
	match func([]Object) bool

	objects map[string]Object // by namespace/name
}

func (w *watch) run(ctx context.Context) ([]Object, error) {
	var list struct {
		Metadata struct {
			ResourceVersion string `json:"resourceVersion"`
		} `json:"metadata"`
		Items []Object `json:"items"`
	}
	if err := w.c.do(ctx, http.MethodGet, w.path+"?"+w.query.Encode(), "", nil, &list); err != nil {
		return nil, err
	}
	w.objects = map[string]Object{}
	for _, o := range list.Items {
		w.objects[key(o)] = o
	}
	if now := w.sorted(); w.match(now) {
		return now, nil
	}
	query := maps.Clone(w.query)
	query.Set("watch", "true")
	query.Set("resourceVersion", list.Metadata.ResourceVersion)
	res, err := w.c.send(ctx, http.MethodGet, w.path+"?"+query.Encode(), "", nil)
	if err != nil {
		return w.sorted(), err
	}
	defer res.Body.Close()
	for events := json.NewDecoder(res.Body); ; {
		var e struct {
			Type   string `json:"type"`
			Object Object `json:"object"`
		}
		if err := events.Decode(&e); err != nil {
			return w.sorted(), cmp.Or(ctx.Err(), errWatchEnded)
		}
		switch e.Type {
		case "ADDED", "MODIFIED":
			w.objects[key(e.Object)] = e.Object
		case "DELETED":
			delete(w.objects, key(e.Object))
		default: // ERROR: the version is too old
			return w.sorted(), errWatchEnded
		}
		if now := w.sorted(); w.match(now) {
			return now, nil
		}
	}
}

func (w *watch) sorted() []Object {
	return slices.SortedFunc(maps.Values(w.objects), func(a, b Object) int { return strings.Compare(key(a), key(b)) })
}

func key(o Object) string { return o.String("metadata", "namespace") + "/" + o.Name() }

func texts(objects []Object) string {
	if len(objects) == 0 {
		return "nothing"
	}
	var b strings.Builder
	for _, o := range objects {
		b.WriteString(o.JSON())
		b.WriteString("\n")
	}
	return b.String()
}
