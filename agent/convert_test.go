package agent

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	"wingman/bootstrap"
	"wingman/health"
	"wingman/iptables"
)

// fill sets every field of a struct to a value that is not its zero, so that one forgotten in a conversion shows.
func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[netip.Prefix]() {
			v.Set(reflect.ValueOf(netip.MustParsePrefix("127.0.0.0/8")))
			return
		}
		for i := range v.NumField() {
			fill(t, v.Field(i))
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem())
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[[]bootstrap.Probe]() { // of probes of probes there would be no end
			v.Set(reflect.ValueOf([]bootstrap.Probe{{Unit: "x"}}))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0))
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(7)
	default:
		t.Fatalf("fill: no value for a %s", v.Type())
	}
}

// zeros lists the fields of a struct that are zero.
func zeros(v reflect.Value, path string) (names []string) {
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			names = append(names, path+v.Type().Field(i).Name)
		}
	}
	return names
}

func TestEveryCaptureSettingReachesThePlanner(t *testing.T) {
	cfg := &bootstrap.Config{}
	fill(t, reflect.ValueOf(&cfg.Capture).Elem())
	cfg.Capture.Mode = "TPROXY"
	got, err := CaptureConfig(cfg, iptables.LevelAll)
	if err != nil {
		t.Fatal(err)
	}
	// What depends on Envoy being down is no setting.
	elsewhere := map[string]bool{"OpenInbound": true, "OpenOutbound": true}
	for _, name := range zeros(reflect.ValueOf(got), "") {
		if !elsewhere[name] {
			t.Errorf("iptables.Config.%s is not set from the settings", name)
		}
	}
}

func TestEveryProbeSettingReachesTheProber(t *testing.T) {
	p := &bootstrap.Probe{}
	fill(t, reflect.ValueOf(p).Elem())
	got := probeOf(p)
	for _, name := range zeros(reflect.ValueOf(got), "") {
		t.Errorf("health.Probe.%s is not set from the settings", name)
	}
	if len(got.All) != 1 || got.All[0].Unit != "x" || got.Exec.MemoryLimit != 7 {
		t.Errorf("probeOf = %+v, want its parts too", got)
	}
	if d := dampingOf(p); d != (health.Damping{Changes: 7, Window: 7, Hold: 7}) || dampingOf(nil) != (health.Damping{}) {
		t.Errorf("dampingOf = %+v, want every value as it was", d)
	}
	if !reflect.DeepEqual(*got.HTTP, health.HTTPGet{Scheme: "x", Host: "x", Path: "x", Port: 7, Headers: [][2]string{{"x", "x"}}}) || got.Period != 7*time.Nanosecond {
		t.Errorf("probeOf = %+v, want every value as it was", got)
	}
	if none := probeOf(nil); !reflect.DeepEqual(none, health.Probe{}) {
		t.Errorf("probeOf(nil) = %+v, want the trivial probe", none)
	}
}

// What the settings say of the Workload API and of groups reaches the identity.
func TestIdentityConfigHasTheSocketAndTheGroups(t *testing.T) {
	c := &bootstrap.Config{Root: t.TempDir()}
	c.Paths.WorkloadSocket, c.Identity.Groups = "/run/spire/agent.sock", []string{"4242"}
	got := identityConfig(c, func(string) string { return "" })
	if got.WorkloadSocket != "/run/spire/agent.sock" || len(got.Groups) != 1 || got.LookupGroup == nil {
		t.Fatalf("socket %q, groups %v", got.WorkloadSocket, got.Groups)
	}
	if gid, err := got.LookupGroup(got.Groups[0]); gid != 4242 || err != nil {
		t.Errorf("group %d, %v", gid, err)
	}
}
