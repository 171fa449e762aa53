package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	billOf = `{"bomFormat": "CycloneDX", "serialNumber": "urn:uuid:1", "metadata": {"timestamp": "TIME", "tools": [{"name": "tool", "hashes": [{"alg": "MD5", "content": "HASH"}]}],
"component": {"name": "wingman", "purl": "pkg:golang/wingman?goos=linux&goarch=amd64"}},
"components": [{"name": "example.com/one", "version": "v1.0.0"}, {"name": "std", "version": "go1"}]}`
	billWanted = `{
  "bomFormat": "CycloneDX",
  "components": [
    {
      "licenses": [
        {
          "license": {
            "id": "Apache-2.0"
          }
        },
        {
          "license": {
            "id": "MIT"
          }
        }
      ],
      "name": "example.com/one",
      "version": "v1.0.0"
    },
    {
      "licenses": [
        {
          "license": {
            "id": "BSD-3-Clause"
          }
        }
      ],
      "name": "std",
      "version": "go1"
    }
  ],
  "metadata": {
    "component": {
      "licenses": [
        {
          "license": {
            "id": "Apache-2.0"
          }
        }
      ],
      "name": "wingman",
      "purl": "pkg:golang/wingman?goos=linux&goarch=amd64"
    },
    "timestamp": "2026-01-31T12:00:00Z",
    "tools": [
      {
        "name": "tool"
      }
    ]
  }
}
`
)

// Two machines at two times make the same bill of one program.
func TestABillOfMaterialsIsOfTheCommitAlone(t *testing.T) {
	at := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	licences := map[string][]string{"example.com/one": {"Apache-2.0", "MIT"}, "std": {"BSD-3-Clause"}}
	for _, made := range [][2]string{{"2026-11-23T22:30:15Z", "aa"}, {"2027-01-01T00:00:00Z", "bb"}} {
		got, err := finish([]byte(strings.NewReplacer("TIME", made[0], "HASH", made[1]).Replace(billOf)), at, licences)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(billWanted, string(got)); diff != "" {
			t.Errorf("made at %s (-want +got):\n%s", made[0], diff)
		}
	}
}

func TestABillThatSaysTooLittleIsRefused(t *testing.T) {
	for _, tc := range []struct{ name, bill, want string }{
		{"no JSON", "warning: hello", "bill of materials"},
		{"nothing linked in", `{"metadata": {"component": {"name": "wingman"}}}`, "0 components"},
		{"a licence that nobody read", billOf, `"example.com/one"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := finish([]byte(tc.bill), time.Time{}, map[string][]string{"std": {"BSD-3-Clause"}})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v; want one with %s", err, tc.want)
			}
		})
	}
}
