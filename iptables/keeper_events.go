package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"wingman/internal/filewatch"
	"wingman/internal/plainfile"

	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// event is a sign that something may have changed.
type event struct {
	facts      bool   // of the host: plan again
	generation uint32 // of nf_tables after its change
	by         string // who changed nf_tables, "" when not known
}

// listen opens what tells of changes and sends events until ctx ends; wait returns when nothing listens any more. It must
// be called in the namespace that is kept.
func (k *Keeper) listen(ctx context.Context) (events <-chan event, wait func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	out := make(chan event, 1)
	stop := func() { cancel(); _ = g.Wait() }
	nft, err := subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		// A kernel without nf_tables: legacy is polled.
		k.log.Debug("no notifications of nf_tables", "cause", err)
	} else {
		k.follow(ctx, g, nft, out, nftEvent)
	}
	route, err := subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		stop()
		return nil, nil, fmt.Errorf("watch addresses and policy rules: %w", err)
	}
	k.follow(ctx, g, route, out, routeEvent)
	if len(k.files) > 0 {
		k.followFiles(ctx, g, out)
	}
	return out, stop, nil
}

// subscribe opens a netlink socket that hears the groups.
func subscribe(family int, groups ...uint32) (*netlink.Conn, error) {
	conn, err := netlink.Dial(family, nil)
	if err != nil {
		return nil, err
	}
	for _, group := range groups {
		if err := conn.JoinGroup(group); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// follow turns messages of a socket into events until ctx ends. Messages that the kernel had no room for are a sign, too.
func (k *Keeper) follow(ctx context.Context, g *errgroup.Group, conn *netlink.Conn, out chan event, read func([]netlink.Message) (event, bool)) {
	g.Go(func() error {
		<-ctx.Done()
		return conn.Close() // ends Receive
	})
	g.Go(func() error {
		for {
			messages, err := conn.Receive()
			if ctx.Err() != nil {
				return nil
			}
			e, interesting := event{}, true
			switch {
			case err == nil:
				e, interesting = read(messages)
			case !errors.Is(err, unix.ENOBUFS):
				k.log.Warn("notifications ended; the rules are only polled from now on", "cause", err)
				return nil
			}
			if !interesting {
				continue
			}
			select {
			case out <- e:
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// nftEvent wants the end of a transaction, which names the process.
func nftEvent(messages []netlink.Message) (event, bool) {
	for _, m := range messages {
		if m.Header.Type == nftType(unix.NFT_MSG_NEWGEN) {
			return parseGeneration(m.Data), true
		}
	}
	return event{}, false
}

// parseGeneration reads NFT_MSG_NEWGEN: the number of the generation and the process that made it, "nft (pid 123)".
func parseGeneration(data []byte) event {
	var e event
	if len(data) < 4 { // struct nfgenmsg
		return e
	}
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return e
	}
	ad.ByteOrder = binary.BigEndian
	var pid uint32
	var name string
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_GEN_ID:
			e.generation = ad.Uint32()
		case unix.NFTA_GEN_PROC_PID:
			pid = ad.Uint32()
		case unix.NFTA_GEN_PROC_NAME:
			name = ad.String()
		}
	}
	if ad.Err() == nil && name != "" {
		e.by = fmt.Sprintf("%s (pid %d)", name, pid)
	}
	return e
}

// nftGeneration asks for the present generation of nf_tables; zero when there is none.
func nftGeneration() uint32 {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0
	}
	defer conn.Close()
	messages, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: nftType(unix.NFT_MSG_GETGEN), Flags: netlink.Request},
		Data:   nfgenmsg(unix.AF_UNSPEC, 0, nil),
	})
	if err != nil || len(messages) == 0 {
		return 0
	}
	return parseGeneration(messages[0].Data).generation
}

// routeEvent tells addresses, which are facts, from policy rules.
func routeEvent(messages []netlink.Message) (event, bool) {
	e, any := event{}, false
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			e.facts, any = true, true
		case unix.RTM_NEWRULE, unix.RTM_DELRULE:
			any = true
		}
	}
	return e, any
}

// followFiles tells when what is read at one of the files is something else: a file is replaced, or a link on the way to it is.
func (k *Keeper) followFiles(ctx context.Context, g *errgroup.Group, out chan event) {
	w := filewatch.New(k.log, slowPoll)
	w.Arm(k.files)
	last := k.contents()
	g.Go(func() error {
		defer w.Stop()
		anyway := time.NewTicker(slowPoll)
		defer anyway.Stop()
		for {
			select {
			case <-w.Changed():
				w.Arm(k.files)
			case <-anyway.C:
			case <-ctx.Done():
				return nil
			}
			now := k.contents()
			if slices.Equal(now, last) {
				continue
			}
			last = now
			select {
			case out <- event{facts: true}:
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// mostOfFile is how much of a file is compared; a resolv.conf has some hundred bytes.
const mostOfFile = 1 << 20

// contents is what is read at the files; of one that cannot be read, why.
func (k *Keeper) contents() []string {
	all := make([]string, len(k.files))
	for i, f := range k.files {
		b, _, err := plainfile.Read(f, mostOfFile)
		if all[i] = string(b); err != nil {
			all[i] = err.Error()
		}
	}
	return all
}
