// Package identity gives a machine its SPIFFE identity in an Istio mesh and keeps it alive.
//
// It owns the way from a credential to a certificate in use: token, private key, CSR, istiod's CA, the checked chain, the store on
// disk, renewal, and the trust bundle. It leaves to others what needs the certificate: agent/xds dials istiod with ClientTLS and
// Token, Envoy's SDS takes Certificate, bootstrap reads the settings. Below it, internal/credential asks programs and clouds for tokens, internal/istioca
// is the call to istiod's CA.
//
// # The life of a certificate
//
//	┌──────┐  due, or woken  ┌────────────┐ issued  ┌───────┐  half is left  ┌──────────┐ a quarter is left ┌──────────┐
//	│ none │ ──────────────► │ requesting │ ──────► │ valid │ ─────────────► │ renewing │ ────────────────► │ expiring │
//	│      │ ◄────────────── │            │         │       │ ◄───────────── │          │                   │          │
//	└──────┘     failed      └────────────┘         └───────┘     issued     └──────────┘                   └──────────┘
//	                                                  ▲  ▲                                                    │      │
//	                                                  │  └─────────────────────── issued ─────────────────────┘      │ its end
//	                                                  │                       ┌─────────┐                            │
//	                                                  └─────── issued ─────── │ expired │ ◄──────────────────────────┘
//	                                                                          └─────────┘
//
// A certificate that is found on disk starts in the phase that its dates say. A clock that jumps, or a suspend, moves between valid,
// renewing, expiring and expired directly; one that somebody wants replaced (evRenew: cert renew, a copied disk) is renewing until it is. In every phase but
// valid the CA is asked, with a pause after each failure: its kind
// (unreachable, invalid, refused, overloaded) decides how long, chance spreads it, and it gets shorter as the end comes closer.
// What may mend a failure (a new token, another root, a clock that was set) ends the pause. policy.step is all of this as a
// pure function; the shares are settings (half is GraceRatio, a quarter is half of that).
//
// Renewal counts from the life as received: istiod backdates NotBefore by two minutes, and counting from it would make a
// short-lived certificate renew in a hot loop. Each round tries the certificate in hand (mTLS, no header) and then the tokens of all sources, in order:
// one is needed once in a machine's life, and again only after the machine was away for longer than its certificate lives. Files are read in
// every turn and watched; programs and clouds are asked by a round that gets as far as them (sources.go).
//
// # The store
//
//	StateDir/identity/              0700
//	    current -> generations/7    switched by one rename
//	    generations/7/              written and synced in full under the name new-7, then renamed
//	        key.pem cert-chain.pem root-cert.pem meta.json    0600
//	    generations/6/              to fall back to
//	    token                       copy of a token file on a tmpfs, while it is good and until a newer one; 0600
//	    corrupt/5/                  did not pass the check at a start; kept for inspection, at most three
//	OutputDir/                      /etc/certs
//	    key.pem -> …/identity/current/key.pem                 and the other two, relative: one rename changes all three
//	    root-cert.pem.before-wingman                          what stood there before the link
//	    groups/GROUP/                   copies for a group that Config.Groups names (share.go)
//	        key.pem -> current/key.pem  and the other two; current -> 7, folders 0750 of the group, files 0640
//
// cert-chain.pem holds the leaf and its intermediates; roots are in root-cert.pem only. meta.json holds the time of receipt,
// where each root comes from, and which machine the identity was given to (origin.go): a copied disk is noticed. A generation counts only if its key belongs to its leaf, the leaf is our SPIFFE id's, and the chain
// leads to its roots. A disk that is full or read-only costs persistence, not the identity: what is in memory stays in use, is said,
// and is written as soon as that works. Where the store is empty and OutputDir holds a living pair of this identity as plain
// files, as pilot-agent leaves it, that pair is taken over.
//
// OutputDir/root-cert.pem is also where operators put istioctl's root. Such a file is taken into the trust bundle, moved aside and
// replaced by our link; whatever is written to the path later, over the link or through it, is noticed and taken in the same
// way. What cannot be used stays where it is and is said; written through the link, it is replaced by our bundle. Links that lead
// elsewhere belong to somebody else and are left alone. Nothing is replaced within two seconds of its last change.
//
// With Seal, key.pem and the copy of the token are sealed (seal.go). OutputDir's links then lead to RunDir/identity, a store of the same shape on a tmpfs, in the
// clear. A generation that cannot be opened stays for the day that its key is back.
//
// # Trust
//
// The bundle is the union of the root file, the roots of the CA's answers, and the mesh's trust bundle that istiod pushes (TakeBundle).
// A root that the CA names no more stays for the life of a certificate, because peers may still hold one below it; one that the file
// or the mesh's bundle names no more goes at once: somebody took it out. Expired ones are left out, and forgotten at the next
// answer. What does not parse as CA certificates changes nothing, and the store keeps all of it beside the certificate.
// istiod's certificate is checked against the bundle of the moment on every handshake, so a rotation needs no restart.
//
// # A Workload API
//
// With Config.WorkloadSocket a SPIFFE Workload API takes the CA's place (workloadapi.go). Its stream delivers identity and bundles: "being
// asked" then means being waited for, and nothing is requested. All else, checks, store, phases, is the same.
//
// # What an answer must be
//
// The leaf must come first, and an answer that has it elsewhere is refused. Intermediates may come in any order: the path is found
// by verification and stored in that order. A leaf that is not valid yet is accepted, and the clock is said to be behind: peers
// check it by their own clocks, and its renewal is moved to be in time for them.
//
// # Goroutines and files
//
// Run is one goroutine that owns all state, one more for the request under way, one for inotify, one for the clock. Everything else reads atomic
// snapshots. No connection to the CA outlives its request. A timer of the kernel
// wakes Run when the clock was set or the machine resumed (clock.go), which Go's timers do not notice; it looks at least twice a
// minute anyway. Secrets are kept in functions (hidden), the one kind of value that fmt cannot look into.
//
// To match: Istio security/pkg/nodeagent/cache/secretcache.go (renewal), security/pkg/nodeagent/caclient/providers/citadel/client.go
// (the call), security/pkg/server/ca/server.go and security/pkg/server/ca/authenticate (what istiod accepts).
package identity
