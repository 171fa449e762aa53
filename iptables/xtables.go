package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// xtables is the backend that speaks through the iptables commands of one flavour.
type xtables struct {
	host    *host
	flavour string // BackendNFT or BackendLegacy
}

// prefixes of the commands per family.
var tableCommands = [2]string{IPv4: "iptables", IPv6: "ip6tables"}

// command finds, for instance, ip6tables-nft-restore: by its flavoured name, else by its plain name if that is this flavour.
func (x *xtables) command(fam Family, what string) (string, error) {
	base := tableCommands[fam]
	flavoured := base + "-" + x.flavour + what
	path, err := x.host.find(flavoured)
	if err == nil {
		return path, nil
	}
	plain, plainErr := x.host.find(base + what)
	if plainErr == nil && flavourOf(plain) == x.flavour {
		return plain, nil
	}
	return "", fmt.Errorf("%w; install the package iptables, or choose backend native, which needs no commands", err)
}

// flavourOf tells which flavour a plain iptables command is: since 1.8 a link that leads to xtables-nft-multi or
// xtables-legacy-multi, before that always legacy.
func flavourOf(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil && strings.Contains(filepath.Base(real), "nft") {
		return BackendNFT
	}
	return BackendLegacy
}

// installed reports whether the commands of this flavour are there for IPv4; IPv6 comes in the same package.
func (x *xtables) installed() bool {
	_, err := x.command(IPv4, "-restore")
	return err == nil
}

// tables that we put rules into.
var ourTables = []string{"raw", "mangle", "nat"}

// read returns the state of one family. Legacy is asked table by table: without root it cannot list its tables.
func (x *xtables) read(ctx context.Context, fam Family) (state, error) {
	save, err := x.command(fam, "-save")
	if err != nil {
		return nil, err
	}
	runs := [][]string{{save}}
	if x.flavour == BackendLegacy {
		tables, err := legacyTables(fam)
		if err != nil {
			return nil, err
		}
		runs = runs[:0]
		for _, name := range ourTables {
			if tables[name].rules {
				runs = append(runs, []string{save, "-t", name})
			}
		}
	}
	all := state{}
	for _, argv := range runs {
		out, err := x.host.run(ctx, "", argv...)
		if err != nil {
			return nil, fmt.Errorf("read the rules: %w", err)
		}
		s, err := parseSave(out)
		if err != nil {
			return nil, fmt.Errorf("read the rules: %s: %w", strings.Join(argv, " "), err)
		}
		for name, t := range s {
			all[name] = t
		}
	}
	return all, nil
}

// restore runs one transaction (per table) of iptables-restore.
func (x *xtables) restore(ctx context.Context, fam Family, input string) error {
	if input == "" {
		return nil
	}
	cmd, err := x.command(fam, "-restore")
	if err != nil {
		return err
	}
	_, err = x.host.run(ctx, input, cmd, "--noflush", fmt.Sprintf("--wait=%d", lockSeconds))
	return err
}

// apply brings both families from what they are to what rules say; on failure of either it brings both back.
//
// seen says, per family, what a look without starting a process found; a family in which there is nothing of ours is not
// read again.
func (x *xtables) apply(ctx context.Context, rules *Rules, seen *seen) error {
	var before [2]state
	var input [2]string
	for _, fam := range []Family{IPv4, IPv6} {
		have, err := x.known(ctx, fam, seen)
		if err != nil {
			return err
		}
		before[fam] = have
		input[fam] = changeAll(fam, have, &rules.Families[fam], x.marks())
	}
	var done []Family
	for _, fam := range []Family{IPv4, IPv6} {
		if input[fam] == "" {
			continue
		}
		done = append(done, fam)
		if err := x.restore(ctx, fam, input[fam]); err != nil {
			err = fmt.Errorf("put the %s rules in: %w", fam, err)
			return errors.Join(err, x.rollBack(context.WithoutCancel(ctx), done, before))
		}
		x.host.step("rules " + fam.String())
	}
	if err := x.makeEmpty(rules, before); err != nil {
		return errors.Join(err, x.rollBack(context.WithoutCancel(ctx), done, before))
	}
	var errs []error
	for _, fam := range done { // tables that a former configuration needed and this one does not
		wanted := rules.Families[fam].names()
		kept := maps.Clone(before[fam])
		maps.DeleteFunc(kept, func(name string, _ *savedTable) bool { return !slices.Contains(wanted, name) })
		errs = append(errs, x.dropMarked(fam, before[fam], wanted), x.dropMade(fam, before[fam], kept))
	}
	return errors.Join(errs...)
}

// makeEmpty makes the tables that should be there without any chain of ours in them.
func (x *xtables) makeEmpty(rules *Rules, before [2]state) error {
	if !x.marks() {
		return nil
	}
	for _, fam := range []Family{IPv4, IPv6} {
		for _, t := range rules.Families[fam].Tables {
			if len(t.Chains) == 0 && before[fam][t.Name] == nil {
				if err := x.host.makeTable(fam, t.Name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// marks reports whether tables that we make are marked, so that they can be removed: legacy tables cannot be.
func (x *xtables) marks() bool { return x.flavour == BackendNFT }

// known returns the state of a family, without starting a process where a look found nothing of ours, or nothing but marks.
func (x *xtables) known(ctx context.Context, fam Family, seen *seen) (state, error) {
	chains := seen.chains(x.flavour, fam)
	for _, names := range chains {
		if slices.ContainsFunc(names, func(c string) bool { return c != chainTable && c != chainGuest }) {
			have, err := x.read(ctx, fam)
			seen.marks = append(seen.marks, have.tproxyMarks()...)
			for name, t := range have {
				t.missing = seen.missing(x.flavour, fam, name)
			}
			return have, err
		}
	}
	if seen.ours(x.flavour, fam) && len(chains) == 0 { // could not look
		return x.read(ctx, fam)
	}
	s := state{}
	for _, name := range seen.tables(x.flavour, fam) {
		s[name] = newSavedTable()
		s[name].missing = seen.missing(x.flavour, fam, name)
		for _, c := range chains[name] {
			s[name].order = append(s[name].order, c)
			s[name].policy[c] = "-"
		}
	}
	return s, nil
}

// rollBack puts our rules back to what they were before in the families that may have changed.
func (x *xtables) rollBack(ctx context.Context, families []Family, before [2]state) error {
	var errs []error
	for _, fam := range families {
		now, err := x.read(ctx, fam)
		if err == nil {
			err = x.restore(ctx, fam, changeBack(now, before[fam]))
		}
		if err == nil {
			err = errors.Join(x.dropMarked(fam, now, slices.Collect(maps.Keys(before[fam]))), x.dropMade(fam, now, before[fam]))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("put the former %s rules back (see what is left with: wingman rules status): %w", fam, err))
		}
	}
	return errors.Join(errs...)
}

// remove takes everything of ours and of Istio's tool out of both families.
func (x *xtables) remove(ctx context.Context, seen *seen) error {
	var errs []error
	for _, fam := range []Family{IPv4, IPv6} {
		if !seen.ours(x.flavour, fam) {
			continue
		}
		have, err := x.known(ctx, fam, seen)
		if err == nil {
			err = x.restore(ctx, fam, changeAll(fam, have, &Ruleset{}, false))
		}
		if err == nil {
			err = errors.Join(x.dropMarked(fam, have, nil), x.dropMade(fam, have, nil), x.dropIstios(fam, have))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove the %s rules: %w", fam, err))
		}
	}
	return errors.Join(errs...)
}

// dropMarked removes the tables that are marked as made by us in have, except those to keep, if nobody else has put anything
// into them meanwhile.
func (x *xtables) dropMarked(fam Family, have state, keep []string) error {
	var marked []string
	for name, t := range have {
		if t.has(chainTable) && !slices.Contains(keep, name) {
			marked = append(marked, name)
		}
	}
	return x.dropTables(fam, marked)
}

// dropMade removes the built-in chains that were made for our rules in tables of others, as have remembers, but not those that
// keep remembers, too.
func (x *xtables) dropMade(fam Family, have, keep state) error {
	made := map[string][]string{}
	for table, t := range have {
		for _, c := range t.order {
			name, ok := strings.CutPrefix(c, chainMade)
			if ok && (keep[table] == nil || !keep[table].has(c)) {
				made[table] = append(made[table], name)
			}
		}
	}
	if len(made) == 0 {
		return nil
	}
	return dropIdleChains(fam, made)
}

// dropIstios removes the tables that held chains of Istio's tool, which marks nothing, and none of ours.
func (x *xtables) dropIstios(fam Family, have state) error {
	if !x.marks() {
		return nil
	}
	var held []string
	for name, t := range have {
		if t.hasPrefix("ISTIO_") && !t.hasPrefix("WINGMAN_") {
			held = append(held, name)
		}
	}
	return x.dropTables(fam, held)
}

func (x *xtables) dropTables(fam Family, names []string) error {
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return x.host.dropTables(fam, names)
}
