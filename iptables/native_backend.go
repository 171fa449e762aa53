package iptables

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// native is the backend that needs no commands: table inet wingman, by netlink, one transaction for everything.
type native struct{ host *host }

// istioTables are what Istio's tool makes with NATIVE_NFTABLES=true (tools/istio-nftables/pkg/constants).
var istioTables = []string{"istio-proxy-nat", "istio-proxy-raw", "istio-proxy-mangle"}

// typeIdentity is the kind of our entry in a rule's user data: a digest of the rule's text. Somebody who replaces a rule
// replaces that too, so equal digests in equal order mean equal rules. nft skips kinds that it does not know.
const typeIdentity = userdata.Type(0x57)

// nativeState is our table as the kernel has it; nil when it is not there.
type nativeState struct {
	order  []string
	chains map[string]nativeHave
	broken bool // switched off (flag dormant), or a base chain at another place: to be made anew
}

type nativeHave struct {
	ids     []string // identity of each rule, "handle N" for one that is not ours
	packets []uint64
}

func openNative() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		// One message per rule and one answer each: thousands of CIDRs do not fit the default buffers.
		return errors.Join(c.SetWriteBuffer(4<<20), c.SetReadBuffer(4<<20))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	return conn, nil
}

var nativeOurs = &nftables.Table{Name: nativeTable, Family: nftables.TableFamilyINet}

// read lists our table, chain by chain.
func (n *native) read(s *seen) (*nativeState, error) {
	if !s.nativeTable() {
		return nil, nil
	}
	conn, err := openNative()
	if err != nil {
		return nil, err
	}
	defer conn.CloseLasting()
	table, err := conn.ListTableOfFamily(nativeTable, nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("read table inet %s: %w", nativeTable, err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list the chains of table inet %s: %w", nativeTable, err)
	}
	st := &nativeState{chains: map[string]nativeHave{}, broken: table.Flags != 0}
	for _, c := range chains {
		if c.Table.Name != nativeTable {
			continue
		}
		st.order = append(st.order, c.Name)
		st.broken = st.broken || misplaced(c)
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return nil, fmt.Errorf("read chain %s of table inet %s: %w", c.Name, nativeTable, err)
		}
		have := nativeHave{ids: []string{}}
		for _, r := range rules {
			have.ids = append(have.ids, identityOf(r))
			have.packets = append(have.packets, packetsOf(r))
		}
		st.chains[c.Name] = have
	}
	return st, nil
}

// misplaced reports whether a chain with a name of ours is not where that chain belongs.
func misplaced(c *nftables.Chain) bool {
	want, base := nativeHooks[c.Name]
	if !base {
		return c.Hooknum != nil
	}
	return c.Hooknum == nil || c.Priority == nil || *c.Hooknum != *want.number() || int(*c.Priority) != want.priority || string(c.Type) != want.kind ||
		(c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept)
}

func (h nativeHook) number() *nftables.ChainHook {
	if h.hook == "output" {
		return nftables.ChainHookOutput
	}
	return nftables.ChainHookPrerouting
}

// identity is the digest of a rule as we write it.
func (r nativeRule) identity() string {
	sum := sha256.Sum256([]byte(r.text()))
	return hex.EncodeToString(sum[:8])
}

func identityOf(r *nftables.Rule) string {
	if id := udataEntry(r.UserData, byte(typeIdentity)); len(id) > 0 {
		return string(id)
	}
	return fmt.Sprintf("handle %d", r.Handle)
}

// udataEntry finds an entry of user data, a list of type, length and value; nil when there is none or the list is cut off.
func udataEntry(data []byte, kind byte) []byte {
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		value := data[2 : 2+int(data[1])]
		if data[0] == kind {
			return value
		}
		data = data[2+len(value):]
	}
	return nil
}

func packetsOf(r *nftables.Rule) uint64 {
	for _, e := range r.Exprs {
		if c, ok := e.(*expr.Counter); ok {
			return c.Packets
		}
	}
	return 0
}

// apply changes the table in one transaction: chains that are right are not touched, so their counters and handles stay.
func (n *native) apply(_ context.Context, rules *Rules, s *seen) error {
	have, err := n.read(s)
	if err != nil {
		return err
	}
	conn, err := openNative()
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	if have != nil && have.broken {
		conn.DelTable(nativeOurs)
		have = nil
	}
	if !n.change(conn, have, rules.native()) {
		return nil
	}
	if err := conn.Flush(); err != nil {
		return nativeError("put the rules into table inet "+nativeTable, err)
	}
	return nil
}

// change queues what turns have into want and reports whether that is anything.
func (n *native) change(conn *nftables.Conn, have *nativeState, want []nativeChain) bool {
	if have == nil {
		have = &nativeState{chains: map[string]nativeHave{}}
		conn.AddTable(nativeOurs)
	}
	changed := len(have.order) == 0
	var refill []nativeChain
	for _, c := range want {
		h, exists := have.chains[c.name]
		if !exists {
			conn.AddChain(c.spec())
		}
		if exists && slices.EqualFunc(h.ids, c.rules, func(id string, r nativeRule) bool { return id == r.identity() }) {
			continue
		}
		changed = true
		if exists {
			conn.FlushChain(&nftables.Chain{Name: c.name, Table: nativeOurs})
		}
		refill = append(refill, c)
	}
	var stale []string
	for _, name := range have.order {
		if !slices.ContainsFunc(want, func(c nativeChain) bool { return c.name == name }) {
			conn.FlushChain(&nftables.Chain{Name: name, Table: nativeOurs})
			stale = append(stale, name)
		}
	}
	for _, c := range refill {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: nativeOurs, Chain: &nftables.Chain{Name: c.name}, Exprs: r.exprs(), UserData: r.userData()})
		}
	}
	for _, name := range stale {
		conn.DelChain(&nftables.Chain{Name: name, Table: nativeOurs})
	}
	return changed || len(stale) > 0
}

func (c *nativeChain) spec() *nftables.Chain {
	spec := &nftables.Chain{Name: c.name, Table: nativeOurs}
	if c.hook != nil {
		accept := nftables.ChainPolicyAccept
		spec.Type, spec.Hooknum, spec.Policy = nftables.ChainType(c.hook.kind), c.hook.number(), &accept
		spec.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.hook.priority))
	}
	return spec
}

func (r *nativeRule) userData() []byte {
	var data []byte
	if r.Reason != "" {
		data = userdata.Append(data, userdata.TypeComment, []byte(comment(r.Reason)+"\x00"))
	}
	return userdata.Append(data, typeIdentity, []byte(r.identity()))
}

// nativeError adds the next step to what the kernel said in one word.
func nativeError(what string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w: %s", what, err, needsCapabilities)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("%s: %w: this kernel lacks a part of nf_tables that the rules need (nft_redir, nft_ct, nft_tproxy, nft_fib): load its module as root, or install iptables", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// remove deletes our table.
func (n *native) remove(_ context.Context, s *seen) error {
	if !s.nativeTable() {
		return nil
	}
	return deleteTables(nftables.TableFamilyINet, nativeTable)
}

// removeIstioTables deletes what Istio's own tool makes with NATIVE_NFTABLES=true.
func removeIstioTables(s *seen) error {
	if s.nft == nil {
		return nil
	}
	var have []string
	for _, name := range istioTables {
		if s.nft.names[nftables.TableFamilyINet][name] {
			have = append(have, name)
		}
	}
	return deleteTables(nftables.TableFamilyINet, have...)
}

// deleteTables deletes tables in one transaction.
func deleteTables(family nftables.TableFamily, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	conn, err := openNative()
	if err != nil {
		return err
	}
	defer conn.CloseLasting()
	for _, name := range names {
		t := &nftables.Table{Name: name, Family: family}
		conn.AddTable(t) // so that one that has just gone is no error
		conn.DelTable(t)
	}
	if err := conn.Flush(); err != nil {
		return nativeError("delete table inet "+strings.Join(names, ", "), err)
	}
	return nil
}

// sections pairs up the chains of our table; Istio's native tables, which are in nobody's plan, are named as a whole.
func (n *native) sections(_ context.Context, rules *Rules, s *seen) ([]section, error) {
	have, err := n.read(s)
	if err != nil {
		return nil, err
	}
	if have == nil {
		have = &nativeState{}
	}
	var out []section
	want := map[string]nativeChain{}
	names := map[string]bool{}
	if !rules.Empty() {
		for _, c := range rules.native() {
			want[c.name] = c
			names[c.name] = true
		}
	}
	texts := map[string]string{}
	for _, c := range want {
		for _, r := range c.rules {
			texts[r.identity()] = r.text()
		}
	}
	for _, name := range have.order {
		names[name] = true
	}
	for _, name := range sortedKeys(names) {
		sec := section{where: "inet " + nativeTable + " " + name}
		if h, ok := have.chains[name]; ok {
			sec.have = []string{}
			for _, id := range h.ids {
				if text, known := texts[id]; known {
					id = text
				} else {
					id = "a rule that is not in the plan (" + id + ")"
				}
				sec.have = append(sec.have, id)
			}
		}
		if c, ok := want[name]; ok {
			sec.want = []string{}
			for _, r := range c.rules {
				sec.want = append(sec.want, r.text())
			}
		}
		out = append(out, sec)
	}
	if have.broken {
		out = append(out, section{where: "inet " + nativeTable, have: []string{"switched off, or hooked in elsewhere"}})
	}
	if s.nft != nil {
		for _, name := range istioTables {
			if s.nft.names[nftables.TableFamilyINet][name] {
				out = append(out, section{where: "inet " + name, have: []string{}})
			}
		}
	}
	return out, nil
}

// counters sums up the rules that end a packet's way through ours.
func (n *native) counters(_ context.Context, s *seen) (Counters, error) {
	var c Counters
	have, err := n.read(s)
	if err != nil || have == nil {
		return c, err
	}
	for name, chain := range have.chains {
		var sum uint64
		for _, packets := range chain.packets {
			sum += packets
		}
		switch name {
		case nativeName("nat", chainRedirect):
			c.Outbound += sum
		case nativeName("nat", chainInRedirect), nativeName("mangle", chainTProxy):
			c.Inbound += sum
		case nativeName("nat", chainOutputDNS):
			c.DNS += sum
		case nativeName("nat", chainGuardIn), nativeName("nat", chainGuardOut), nativeName("mangle", chainGuardIn):
			c.Guarded += sum
		}
	}
	return c, nil
}
