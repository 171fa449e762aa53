package sds

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// turn is one thing that happens on a stream: a request, or secrets that changed; then what must be sent.
type turn struct {
	request *request
	secrets map[string]string // name → version, as from now on; nil: as before
	sends   string            // "name@version …, -removed …"; empty: nothing
	refused string            // names that the request refuses
	files   string            // +begun and -ended subscriptions
}

func TestSession(t *testing.T) {
	sotw := func(nonce, refusal string, names ...string) *request {
		return &request{subscribe: names, only: true, nonce: nonce, refusal: refusal}
	}
	tests := []struct {
		name  string
		turns []turn
	}{
		{"what is there is sent at once, and once", []turn{
			{request: sotw("", "", "default"), secrets: map[string]string{"default": "1"}, sends: "default@1", files: "+default"},
			{request: sotw("1", "", "default")},
		}},
		{"what is not there is waited for", []turn{
			{request: sotw("", "", "default", "ROOTCA"), secrets: map[string]string{"ROOTCA": "1"}, sends: "ROOTCA@1", files: "+ROOTCA +default"},
			{request: sotw("1", "", "default", "ROOTCA")},
			{secrets: map[string]string{"default": "7", "ROOTCA": "1"}, sends: "default@7"},
		}},
		{"only what changed is sent again", []turn{
			{request: sotw("", "", "default", "ROOTCA"), secrets: map[string]string{"default": "1", "ROOTCA": "1"}, sends: "ROOTCA@1 default@1", files: "+ROOTCA +default"},
			{secrets: map[string]string{"default": "2", "ROOTCA": "1"}, sends: "default@2"},
			{secrets: map[string]string{"default": "2", "ROOTCA": "1"}},
		}},
		{"what was refused is not sent again until it is another", []turn{
			{request: sotw("", "", "default"), secrets: map[string]string{"default": "1"}, sends: "default@1", files: "+default"},
			{request: sotw("1", "bad key", "default"), refused: "default"},
			{request: sotw("1", "bad key", "default")}, // said before
			{secrets: map[string]string{"default": "2"}, sends: "default@2"},
		}},
		{"an answer to nothing that was sent changes nothing", []turn{
			{request: sotw("99", "from another life", "default"), secrets: map[string]string{"default": "1"}, sends: "default@1", files: "+default"},
		}},
		{"a name that is not repeated is not wanted any more", []turn{
			{request: sotw("", "", "file-root:/a", "file-root:/b"), secrets: map[string]string{"file-root:/a": "1", "file-root:/b": "1"}, sends: "file-root:/a@1 file-root:/b@1", files: "+file-root:/a +file-root:/b"},
			{request: sotw("1", "", "file-root:/b"), files: "-file-root:/a"},
			{secrets: map[string]string{"file-root:/a": "2", "file-root:/b": "2"}, sends: "file-root:/b@2"},
			{request: sotw("2", "", "file-root:/a", "file-root:/b"), sends: "file-root:/a@2", files: "+file-root:/a"},
		}},
		{"a name that can be nothing is answered as removed, once", []turn{
			{request: &request{subscribe: []string{"nonsense", "default"}}, secrets: map[string]string{"default": "1"}, sends: "default@1 -nonsense", files: "+default +nonsense"},
			{request: &request{nonce: "1"}},
			{request: &request{subscribe: []string{"nonsense"}, nonce: "1"}, sends: "-nonsense"}, // asked again, answered again
		}},
		{"incremental: what the client has from an earlier stream is not sent", []turn{
			{request: &request{subscribe: []string{"default", "ROOTCA"}, have: map[string]string{"default": "1", "ROOTCA": "0"}},
				secrets: map[string]string{"default": "1", "ROOTCA": "1"}, sends: "ROOTCA@1", files: "+ROOTCA +default"},
		}},
		{"incremental: subscribing again asks for it again", []turn{
			{request: &request{subscribe: []string{"default"}}, secrets: map[string]string{"default": "1"}, sends: "default@1", files: "+default"},
			{request: &request{subscribe: []string{"default"}, nonce: "1"}, sends: "default@1"},
		}},
		{"incremental: what is unsubscribed is not sent", []turn{
			{request: &request{subscribe: []string{"default", "ROOTCA"}}, secrets: map[string]string{"default": "1"}, sends: "default@1", files: "+ROOTCA +default"},
			{request: &request{unsubscribe: []string{"default", "never"}, nonce: "1"}, files: "-default"},
			{secrets: map[string]string{"default": "2"}},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSession()
			secrets := map[string]string{}
			for i, turn := range tt.turns {
				if turn.secrets != nil {
					secrets = turn.secrets
				}
				var refused, moved []string
				if turn.request != nil {
					r, added, dropped, err := s.apply(*turn.request)
					if err != nil {
						t.Fatal(err)
					}
					refused = r
					for _, name := range added {
						moved = append(moved, "+"+name)
					}
					for _, name := range dropped {
						moved = append(moved, "-"+name)
					}
					slices.Sort(moved)
				}
				_, changed, impossible := s.due(func(name string) (secret, bool) {
					v, ok := secrets[name]
					return secret{version: v}, ok
				})
				var sends []string
				for _, c := range changed {
					sends = append(sends, c.name+"@"+c.version)
				}
				for _, name := range impossible {
					sends = append(sends, "-"+name)
				}
				got := [3]string{strings.Join(sends, " "), strings.Join(refused, " "), strings.Join(moved, " ")}
				if want := [3]string{turn.sends, turn.refused, turn.files}; got != want {
					t.Errorf("turn %d: sends, refused, subscriptions %q, want %q", i+1, got, want)
				}
			}
		})
	}
}

func TestOneStreamCannotAskForEverything(t *testing.T) {
	var names []string
	for i := range maxNames + 1 {
		names = append(names, fmt.Sprintf("file-root:/%d", i))
	}
	if _, _, _, err := newSession().apply(request{subscribe: names, only: true}); err == nil {
		t.Errorf("%d names were taken", len(names))
	}
	if _, _, _, err := newSession().apply(request{subscribe: names[1:], only: true}); err != nil {
		t.Errorf("%d names: %v", len(names)-1, err)
	}
}

// A client that never answers must not make the agent remember for ever.
func TestUnansweredResponsesAreForgotten(t *testing.T) {
	s := newSession()
	if _, _, _, err := s.apply(request{subscribe: []string{"default"}, only: true}); err != nil {
		t.Fatal(err)
	}
	for i := range 10 * maxOpen {
		s.due(func(string) (secret, bool) { return secret{version: fmt.Sprint(i)}, true })
	}
	if len(s.sent) > maxOpen {
		t.Errorf("%d responses are remembered, want at most %d", len(s.sent), maxOpen)
	}
}
