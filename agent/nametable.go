package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"wingman/agent/xds/nds"
	"wingman/dnsproxy"
)

// tableHeader opens a saved name table: the magic, the version istiod gave it, when it came (RFC 3339), and the SHA-256 of the
// NameTable that follows, in one line.
const tableHeader = "wingman-nametable/1"

// errDamagedTable marks a saved name table that cannot be trusted.
var errDamagedTable = errors.New("saved name table is damaged")

// namesOf converts istiod's NameTable, sorted by host.
func namesOf(t *nds.NameTable) []dnsproxy.Name {
	names := make([]dnsproxy.Name, 0, len(t.GetTable()))
	for _, host := range slices.Sorted(maps.Keys(t.GetTable())) {
		info := t.GetTable()[host]
		n := dnsproxy.Name{
			Host:      host,
			Registry:  info.GetRegistry(),
			ShortName: info.GetShortname(),
			Namespace: info.GetNamespace(),
			AltHosts:  info.GetAltHosts(),
			Addrs:     make([]netip.Addr, 0, len(info.GetIps())),
		}
		for _, ip := range info.GetIps() {
			addAddress(&n, ip)
		}
		names = append(names, n)
	}
	return names
}

// addAddress adds what istiod gives as an address of n.
func addAddress(n *dnsproxy.Name, text string) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		n.Addrs = append(n.Addrs, addr.Unmap())
	} else {
		n.BadAddrs = append(n.BadAddrs, text)
	}
}

// mostNamed bounds how many bad entries one sentence names.
const mostNamed = 5

// theFirst names the first few of what a table leaves out.
func theFirst(list []dnsproxy.LeftOut) string {
	var b strings.Builder
	for i, l := range list {
		if i == mostNamed {
			fmt.Fprintf(&b, "; and %d more", len(list)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(l.String())
	}
	return b.String()
}

// usable is an error for a table of which nothing is left: what is in use serves better. A table that is empty because the mesh is, is good.
func usable(t *dnsproxy.Table) error {
	if list := t.LeftOut(""); t.Len() == 0 && len(list) > 0 {
		return fmt.Errorf("name table: nothing in it can be used: %s", theFirst(list))
	}
	return nil
}

// savedTable is a NameTable as kept on disk.
type savedTable struct {
	version  string
	received time.Time
	raw      []byte // the NameTable, protobuf
}

// encode renders t as the file's bytes.
func (t savedTable) encode() []byte {
	sum := sha256.Sum256(t.raw)
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %q %s %s\n", tableHeader, t.version, t.received.UTC().Format(time.RFC3339), hex.EncodeToString(sum[:]))
	b.Write(t.raw)
	return b.Bytes()
}

// decodeTable is the inverse of encode; its errors wrap errDamagedTable.
func decodeTable(file []byte) (savedTable, error) {
	line, raw, ok := bytes.Cut(file, []byte("\n"))
	if !ok {
		return savedTable{}, fmt.Errorf("%w: no header line", errDamagedTable)
	}
	var (
		t              savedTable
		magic, at, sum string
	)
	if _, err := fmt.Sscanf(string(line), "%s %q %s %s", &magic, &t.version, &at, &sum); err != nil || magic != tableHeader {
		return savedTable{}, fmt.Errorf("%w: header %.60q, expected %q and three fields", errDamagedTable, line, tableHeader)
	}
	received, err := time.Parse(time.RFC3339, at)
	if err != nil {
		return savedTable{}, fmt.Errorf("%w: time %.40q in its header", errDamagedTable, at)
	}
	if got := sha256.Sum256(raw); hex.EncodeToString(got[:]) != sum {
		return savedTable{}, fmt.Errorf("%w: its %d bytes do not match the checksum in its header", errDamagedTable, len(raw))
	}
	t.received, t.raw = received, raw
	return t, nil
}

// names decodes the table itself.
func (t savedTable) names() ([]dnsproxy.Name, error) {
	if names, ok := readNames(t.raw); ok {
		return names, nil
	}
	var m nds.NameTable
	if err := proto.Unmarshal(t.raw, &m); err != nil {
		return nil, fmt.Errorf("name table: %w", err)
	}
	return namesOf(&m), nil
}

// tableFile is the saved name table on disk.
type tableFile string

func (f tableFile) save(t savedTable) error {
	return writeFile(string(f), t.encode(), 0o600)
}

// load reads the file. A damaged one is moved aside for inspection, so that it is reported once and never in the way.
func (f tableFile) load() (savedTable, error) {
	b, err := os.ReadFile(string(f))
	if err != nil {
		return savedTable{}, err
	}
	t, err := decodeTable(b)
	if err == nil {
		return t, nil
	}
	return savedTable{}, errors.Join(err, setAside(string(f)))
}
