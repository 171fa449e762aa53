// Package kube is a small client of the Kubernetes API: apply, get, list, wait, delete, over plain REST.
//
// Objects are what JSON makes of them. client-go would do, and would add a hundred packages to every build of these tests
// for five verbs. Waiting is by the API's own watch, so a test neither polls nor sleeps.
package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	yaml "go.yaml.in/yaml/v3"
)

// fieldManager names the owner of the fields that Apply sets.
const fieldManager = "wingman-tests"

// ErrNotFound means that the API server has no such object.
var ErrNotFound = errors.New("not found")

// Client talks to one API server. It is safe for concurrent use.
type Client struct {
	base  string // https://host:port
	token string
	http  *http.Client

	mu    sync.Mutex
	kinds map[string]map[string]resource // apiVersion → kind; guarded by mu
}

// resource is how a kind appears in URLs.
type resource struct {
	Name       string `json:"name"` // plural
	Kind       string `json:"kind"`
	Namespaced bool   `json:"namespaced"`
}

// New makes a client for the API server at base (https://host:port) that sends a bearer token.
func New(base, token string, tlsConfig *tls.Config) *Client {
	return &Client{
		base:  base,
		token: token,
		http:  &http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true}},
		kinds: map[string]map[string]resource{},
	}
}

// Ref names an object, or with an empty Name all objects of its kind: in a namespace, or everywhere.
type Ref struct {
	APIVersion, Kind, Namespace, Name string
}

func (r Ref) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s %s/%s", r.Kind, r.Namespace, r.Name), "/")
}

// Apply creates or changes every object of a YAML stream, in order (server-side apply, taking over the fields it names).
// A status in the YAML is applied too where its kind has that subresource.
func (c *Client) Apply(ctx context.Context, stream string) error {
	for _, doc := range Documents(stream) {
		ref, hasStatus, err := identify(doc)
		if err != nil {
			return fmt.Errorf("apply: %w:\n%s", err, doc)
		}
		if err := c.patch(ctx, ref, "", doc); err != nil {
			return fmt.Errorf("apply %s: %w", ref, err)
		}
		if !hasStatus {
			continue
		}
		if err := c.patch(ctx, ref, "/status", doc); err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("apply status of %s: %w", ref, err)
		}
	}
	return nil
}

func (c *Client) patch(ctx context.Context, ref Ref, subresource, doc string) error {
	path, err := c.path(ctx, ref)
	if err != nil {
		return err
	}
	query := "?" + url.Values{"fieldManager": {fieldManager}, "force": {"true"}}.Encode()
	return c.do(ctx, http.MethodPatch, path+subresource+query, "application/apply-patch+yaml", []byte(doc), nil)
}

// Create posts one object in JSON or YAML and returns what the server made of it. subresource is empty or, as "/token" of
// a service account, the end of the path that the object is posted to; ref then names the object it belongs to.
func (c *Client) Create(ctx context.Context, ref Ref, subresource, object string) (Object, error) {
	if subresource == "" {
		ref.Name = ""
	}
	path, err := c.path(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", ref, err)
	}
	var made Object
	if err := c.do(ctx, http.MethodPost, path+subresource, "application/yaml", []byte(object), &made); err != nil {
		return nil, fmt.Errorf("create %s: %w", ref, err)
	}
	return made, nil
}

// Get returns one object; ErrNotFound when there is none.
func (c *Client) Get(ctx context.Context, ref Ref) (Object, error) {
	path, err := c.path(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("get %s: %w", ref, err)
	}
	var o Object
	if err := c.do(ctx, http.MethodGet, path, "", nil, &o); err != nil {
		return nil, fmt.Errorf("get %s: %w", ref, err)
	}
	return o, nil
}

// Delete deletes one object; ErrNotFound when there is none.
func (c *Client) Delete(ctx context.Context, ref Ref) error {
	path, err := c.path(ctx, ref)
	if err != nil {
		return fmt.Errorf("delete %s: %w", ref, err)
	}
	if err := c.do(ctx, http.MethodDelete, path, "", nil, nil); err != nil {
		return fmt.Errorf("delete %s: %w", ref, err)
	}
	return nil
}

// Ready asks the API server whether it is ready for requests. It asks over probe: a server that is not ready yet shall not
// leave broken connections behind.
func (c *Client) Ready(ctx context.Context, probe *http.Client) error {
	asking := &Client{base: c.base, token: c.token, http: probe}
	return asking.do(ctx, http.MethodGet, "/readyz", "", nil, nil)
}

// path is the URL path of an object or a collection. The API server says how kinds are spelled there.
func (c *Client) path(ctx context.Context, ref Ref) (string, error) {
	root := "/apis/" + ref.APIVersion
	if !strings.Contains(ref.APIVersion, "/") {
		root = "/api/" + ref.APIVersion
	}
	r, err := c.resource(ctx, root, ref)
	if err != nil {
		return "", err
	}
	path := root
	if r.Namespaced && ref.Namespace != "" {
		path += "/namespaces/" + ref.Namespace
	} else if r.Namespaced && ref.Name != "" {
		return "", fmt.Errorf("%s %s has no namespace", ref.Kind, ref.Name)
	}
	return strings.TrimSuffix(path+"/"+r.Name+"/"+ref.Name, "/"), nil
}

func (c *Client) resource(ctx context.Context, root string, ref Ref) (resource, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r, ok := c.kinds[ref.APIVersion][ref.Kind]; ok {
		return r, nil
	}
	var list struct {
		Resources []resource `json:"resources"`
	}
	if err := c.do(ctx, http.MethodGet, root, "", nil, &list); err != nil {
		return resource{}, fmt.Errorf("discover %s: %w", ref.APIVersion, err)
	}
	kinds := map[string]resource{}
	for _, r := range list.Resources {
		if !strings.Contains(r.Name, "/") { // with a slash it is a subresource
			kinds[r.Kind] = r
		}
	}
	c.kinds[ref.APIVersion] = kinds
	r, ok := kinds[ref.Kind]
	if !ok {
		return resource{}, fmt.Errorf("%s has no kind %s", ref.APIVersion, ref.Kind)
	}
	return r, nil
}

// do makes one request; into, if not nil, gets the JSON of the answer.
func (c *Client) do(ctx context.Context, method, path, contentType string, body []byte, into any) error {
	res, err := c.send(ctx, method, path, contentType, body)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if into != nil {
		return json.NewDecoder(res.Body).Decode(into)
	}
	_, err = io.Copy(io.Discard, res.Body) // to the end, so that the connection can be used again
	return err
}

func (c *Client) send(ctx context.Context, method, path, contentType string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	req.Header.Set("Accept", "application/json")
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode < 300 {
		return res, nil
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body) // a broken body leaves the status, which is the error
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(b, &status) != nil || status.Message == "" {
		status.Message = strings.TrimSpace(string(b))
	}
	if res.StatusCode == http.StatusNotFound {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, status.Message)
	}
	return nil, fmt.Errorf("%s: %s", res.Status, status.Message)
}

// Documents splits a YAML stream at its --- lines and leaves out what is empty.
func Documents(stream string) []string {
	var docs []string
	for doc := range strings.SplitSeq("\n"+stream, "\n---\n") {
		if strings.TrimSpace(doc) != "" {
			docs = append(docs, strings.TrimSpace(doc)+"\n")
		}
	}
	return docs
}

// identify reads what an object of YAML says of itself.
func identify(doc string) (ref Ref, hasStatus bool, err error) {
	var o struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
		Metadata   struct {
			Name      string `yaml:"name"`
			Namespace string `yaml:"namespace"`
		} `yaml:"metadata"`
		Status map[string]any `yaml:"status"`
	}
	if err := yaml.Unmarshal([]byte(doc), &o); err != nil {
		return Ref{}, false, err
	}
	if o.APIVersion == "" || o.Kind == "" || o.Metadata.Name == "" {
		return Ref{}, false, errors.New("want an object with apiVersion, kind and metadata.name")
	}
	return Ref{o.APIVersion, o.Kind, o.Metadata.Namespace, o.Metadata.Name}, o.Status != nil, nil
}
