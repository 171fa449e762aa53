package identity

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wingman/bootstrap/identity/internal/credential"
)

// The sources of tokens, by name.
const (
	SourceSystemd = "systemd" // a credential of the unit
	SourceFile    = "file"    // the token file
	SourceCopy    = "copy"    // our own copy of it
	SourceExec    = "exec"    // a program
	SourceGCE     = "gce"
	SourceAWS     = "aws"
	SourceAzure   = "azure"
)

// Sources are the names that an order may have.
var Sources = []string{SourceSystemd, SourceFile, SourceExec, SourceGCE, SourceAWS, SourceAzure}

// An Exec is a program that prints a token: argv, what to add to its environment, and how long it may take (zero means 10 s).
type Exec = credential.Exec

// Credentials says where tokens come from.
type Credentials struct {
	Order   []string // of Sources; nil means the token file
	Systemd string   // file of the unit's credential, "" when it has none
	Exec    Exec     // for "exec"
	// Where the clouds' metadata services are; "" means the usual place.
	GCEHost, AWSEndpoint, AWSSTS, AzureHost string
	// AzureClient names one of several managed identities; "" means the machine's own.
	AzureClient string
}

func (c Credentials) validate() (problems []error) {
	for i, name := range c.Order {
		switch {
		case !slices.Contains(Sources, name):
			problems = append(problems, fmt.Errorf("credentials %q: expected some of %s", name, strings.Join(Sources, ", ")))
		case slices.Contains(c.Order[:i], name):
			problems = append(problems, fmt.Errorf("credentials: %q stands there twice", name))
		}
	}
	if slices.Contains(c.Order, SourceExec) {
		if err := credential.CheckCommand(c.Exec.Command); err != nil {
			problems = append(problems, fmt.Errorf("credential exec: %w", err))
		}
	}
	return problems
}

// sources are those of c that there are, in order. A Workload API needs none.
func (c Config) sources(box *sealer) (list []credential.Source) {
	if c.WorkloadSocket != "" {
		return nil
	}
	order := c.Credentials.Order
	if order == nil {
		order = []string{SourceFile}
	}
	for _, name := range order {
		switch x := c.Credentials; name {
		case SourceSystemd:
			if x.Systemd != "" {
				list = append(list, fileSource{name, x.Systemd})
			}
		case SourceFile:
			if c.TokenFile != "" {
				list = append(list, fileSource{name, c.TokenFile}, copySource{filepath.Join(c.StateDir, storeName, copyFile), box})
			}
		case SourceExec:
			list = append(list, credential.NewExec(x.Exec))
		case SourceGCE:
			list = append(list, credential.NewGCE(x.GCEHost, c.Audience))
		case SourceAWS:
			list = append(list, credential.NewAWS(x.AWSEndpoint, x.AWSSTS, c.Audience))
		case SourceAzure:
			list = append(list, credential.NewAzure(x.AzureHost, c.Audience, x.AzureClient))
		}
	}
	return list
}

// fileToMend is where an operator puts a token, "" when no file is among the sources.
func (m *Manager) fileToMend() string {
	for _, s := range m.sources {
		if s.Name() == SourceFile {
			return s.Where()
		}
	}
	return ""
}

// A fileSource is a token in a file.
type fileSource struct{ name, path string }

func (f fileSource) Name() string  { return f.name }
func (f fileSource) Where() string { return f.path }
func (fileSource) Local() bool     { return true }

func (f fileSource) Token(context.Context) (credential.Token, error) {
	token, mode, err := readToken(f.path)
	t := credential.Token{JWT: credential.Secret(token)}
	if mode&0o004 != 0 {
		t.Warning = fmt.Sprintf("every user of this machine can read %s: chmod 0600 it", f.path)
	}
	return t, err
}

// An offer is a source of tokens and what it gave when it was last asked.
type offer struct {
	source  credential.Source
	token   hidden[string] // nil: err says why
	warning string
	err     error
	asked   time.Time // zero: not yet
}

func offersOf(sources []credential.Source) []offer {
	list := make([]offer, len(sources))
	for i, s := range sources {
		list[i] = offer{source: s}
	}
	return list
}

func (o *offer) ask(ctx context.Context, now time.Time) {
	token, err := o.source.Token(ctx)
	o.token, o.warning, o.err, o.asked = hidden[string](token.JWT), token.Warning, err, now
	if err != nil {
		o.token = nil
	}
}

// forget tells a source that keeps its token that istiod does not want it.
func (o *offer) forget() {
	if keeper, ok := o.source.(interface{ Forget() }); ok {
		keeper.Forget()
	}
}

// state is what there is to say about o.
func (o offer) state(want TokenWant, now time.Time) TokenState {
	s := TokenState{Source: o.source.Name(), File: o.source.Where(), Present: o.token != nil, Warning: o.warning}
	if !o.source.Local() {
		s.AskedAt = o.asked
	}
	switch {
	case o.token != nil:
		raw := []byte(o.token.reveal())
		info, _ := InspectToken(raw, now)
		s.Expires, s.Audience, s.Subject = info.Expiry.UTC(), info.Audiences, info.Subject
		if err := CheckToken(raw, want, now); err != nil {
			s.Problem = err.Error()
		}
	case o.err != nil && !errors.Is(o.err, ErrNoToken):
		s.Problem = o.err.Error()
	}
	return s
}

// missing says why no source has a token: the one reason, or each with its source's name. What is only not there is passed over beside a real fault.
func missing(offers []offer) error {
	var absent, faults []error
	var said []string
	fileAlone := false
	for _, o := range offers {
		switch {
		case o.err == nil:
		case errors.Is(o.err, ErrNoToken):
			if o.source.Name() == SourceFile || absent == nil {
				absent = []error{o.err}
			}
		default:
			faults = append(faults, o.err)
			fileAlone = o.source.Name() == SourceFile
			said = append(said, o.source.Name()+": "+o.err.Error())
		}
	}
	switch {
	case len(faults) == 1 && (len(offers) == 1 || fileAlone):
		return faults[0]
	case len(faults) > 0:
		return errors.New("no token: " + strings.Join(said, "; "))
	case len(absent) > 0:
		return absent[0]
	}
	return fmt.Errorf("%w: no token file is named", ErrNoToken)
}

// readTokens looks at the files of tokens, and reports whether there is a new token to try.
func (r *runner) readTokens(now time.Time) (news bool) {
	for i := range r.offers {
		if r.offers[i].source.Local() && r.readToken(i, now) {
			news = true
		}
	}
	r.sayTokens(now)
	return news
}

// readToken looks at one file.
func (r *runner) readToken(i int, now time.Time) (news bool) {
	o, before := &r.offers[i], r.offers[i]
	o.ask(context.Background(), now)
	if o.err != nil && !errors.Is(o.err, ErrNoToken) && (before.err == nil || before.err.Error() != o.err.Error()) {
		r.cfg.Log.Warn("token cannot be used", "source", o.source.Name(), "cause", o.err)
	}
	if o.warning != "" && before.warning == "" {
		r.cfg.Log.Warn("token is readable by everybody: chmod 0600 it", "file", o.source.Where())
	}
	if o.token == nil || o.token.reveal() == before.token.reveal() {
		return false
	}
	s := o.state(r.wantToken(), now)
	r.cfg.Log.Info("token found", "source", s.Source, "subject", s.Subject, "expires", s.Expires, "problem", s.Problem)
	return true
}

// takeOffers takes in what a request learned from the sources that only requests ask.
func (r *runner) takeOffers(asked []offer, now time.Time) {
	for i, o := range asked {
		if !o.source.Local() && !o.asked.IsZero() {
			if o.err != nil && (r.offers[i].err == nil || r.offers[i].err.Error() != o.err.Error()) {
				r.cfg.Log.Warn("source gives no token", "source", o.source.Name(), "cause", o.err)
			}
			r.offers[i] = o
		}
	}
	r.sayTokens(now)
}

// sayTokens writes what is known of the sources into State.
func (r *runner) sayTokens(now time.Time) {
	r.said.Token = TokenState{}
	r.said.Tokens = make([]TokenState, 0, len(r.offers))
	for _, o := range r.offers {
		s := o.state(r.wantToken(), now)
		r.said.Tokens = append(r.said.Tokens, s)
		if s.Source == SourceFile {
			r.said.Token = s
		}
	}
}

// wantToken is what istiod expects of our token.
func (m *Manager) wantToken() TokenWant {
	return TokenWant{Audience: m.cfg.Audience, Namespace: m.who.namespace, ServiceAccount: m.who.serviceAccount}
}
