package resolved

import (
	"strings"
	"testing"
)

func TestUnasked(t *testing.T) {
	const stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch .\n"
	for _, tc := range []struct{ name, resolvConf, nsswitch, want string }{
		{"the stub", stub, "hosts: files dns\n", ""},
		{"the proxy stub", "nameserver 127.0.0.54\n", "", ""},
		{"the stub after others is asked last", "nameserver 10.0.0.2\nnameserver 127.0.0.53\n", "hosts: files dns", "resolv.conf names 10.0.0.2, not systemd-resolved (127.0.0.53): programs of this machine do not ask it"},
		{"no server", "search example.com\n", "hosts: files dns", "resolv.conf names no server"},
		{"glibc asks by nss-resolve", "nameserver 10.0.0.2\n", "passwd: files\nhosts: files resolve [!UNAVAIL=return] dns\n", "only programs that look names up by glibc"},
		{"nss-resolve behind dns is not asked", "nameserver 10.0.0.2\n", "hosts: files dns resolve\n", "programs of this machine do not ask it"},
		{"a comment is none", "#nameserver 127.0.0.53\nnameserver 10.0.0.2\n", "hosts: files dns # resolve\n", "programs of this machine do not ask it"},
	} {
		if got := Unasked(tc.resolvConf, tc.nsswitch); (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q in it", tc.name, got, tc.want)
		}
	}
}

func FuzzUnasked(f *testing.F) {
	f.Add("nameserver 127.0.0.53\n", "hosts: files resolve [!UNAVAIL=return] dns\n")
	f.Add("nameserver\n\x00nameserver fe80::1%eth0", "hosts:")
	f.Fuzz(func(t *testing.T, resolvConf, nsswitch string) {
		if got := Unasked("nameserver 127.0.0.53\n"+resolvConf, nsswitch); got != "" {
			t.Errorf("the stub first, and %q", got)
		}
		Unasked(resolvConf, nsswitch)
	})
}
