package chapter

import (
	"fmt"
	"strings"
	"testing"

	"wingman/test/mesh"
	"wingman/test/mesh/kube"
	"wingman/test/mesh/testbed"
)

// Two machines with ENABLE_HBONE=true in a mesh where istiod has ambient mode on (PILOT_ENABLE_AMBIENT). Both serve port 15008, and
// istiod marks their entries for it. To an endpoint that also takes Istio's classic mutual TLS istiod prefers that
// (PILOT_PREFER_SENDING_HBONE=false, its default), so catalog says that it takes HBONE alone, as the pods of an ambient namespace do.
func TestHBONE(t *testing.T) {
	w := world{istioOnly: true, options: mesh.Options{
		IstiodEnv:  map[string]string{"PILOT_ENABLE_AMBIENT": "true", "PILOT_WORKLOAD_ENTRY_GRACE_PERIOD": shortGrace},
		MeshConfig: mesh.DefaultMeshConfig + testbed.AccessLog,
	}}
	bed := testbed.New(t, w.options)
	bed.Apply(t, strings.NewReplacer(
		"labels: {app: catalog}", "labels: {app: catalog, security.istio.io/tlsMode: disabled}",
		"metadata: {name: istioinaction}", "metadata: {name: istioinaction, labels: {istio.io/dataplane-mode: ambient}}",
	).Replace(testbed.Objects))
	f, c := testbed.Forum, testbed.Catalog
	f.Sidecar, c.Sidecar = "ENABLE_HBONE=true\n", "ENABLE_HBONE=true\n"
	forum, catalog := prepare(t, bed, f, 8080), prepare(t, bed, c, 3000)
	forum.start(t)
	catalog.start(t)
	for _, m := range []*member{forum, catalog} {
		m.awaitMember(t)
		m.Entry(t, "istiod marks the entry for HBONE", func(o kube.Object) bool {
			return o.Labels("spec", "labels")["networking.istio.io/tunnel"] == "http"
		})
		shows(t, bed, "listener", saved(t, m, "/config_dump"), []string{"0.0.0.0 15008 ALL Inline Route:"})
		noneRejected(t, w, m)
	}

	// To catalog by HBONE, and back by mutual TLS.
	reaches(t, forum, catalogHost, "catalog-vm", "/tunnelled")
	reaches(t, catalog, forumHost, "forum-vm", "/classic")
	wentTo(t, forum, "/tunnelled", fmt.Sprintf("envoy://connect_originate/%s:3000", catalog.IP()))
	wentTo(t, catalog, "/classic", fmt.Sprintf("%s:8080", forum.IP()))
	sentBy(t, forum.envoy, "/classic", catalogID)
	shows(t, bed, "endpoint", saved(t, forum, "/clusters?format=json"), []string{
		fmt.Sprintf("%s:15008 HEALTHY OK connect_originate", catalog.IP()),
	})
	if n := catalog.envoy.Admin(t, "/stats?filter=^listener.0.0.0.0_15008.downstream_cx_active$"); !strings.HasSuffix(n, ": 1\n") {
		t.Errorf("port 15008 of catalog has %q, want one connection", n)
	}

	// The identity of the tunnel's other end is what policy sees.
	allow(t, bed, "spiffe://cluster.local/ns/istioinaction/sa/somebody-else")
	testbed.Await(t, "forum is refused", func() error {
		r, err := forum.Get(t.Context(), catalogHost, "/")
		if err == nil && (r.Status != 403 || !strings.HasPrefix(r.Body, "RBAC")) {
			err = fmt.Errorf("got %+v, want 403 of Envoy", r)
		}
		return err
	})
	allow(t, bed, forumID)
	reaches(t, forum, catalogHost, "catalog-vm", "/allowed")
}

// allow lets one identity ask for what is in istioinaction, and nobody else.
func allow(t *testing.T, bed *testbed.Bed, id string) {
	t.Helper()
	bed.Apply(t, fmt.Sprintf(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: catalog, namespace: istioinaction}
spec:
  action: ALLOW
  rules: [{from: [{source: {principals: [%s]}}]}]
`, strings.TrimPrefix(id, "spiffe://")))
}
