package identity

import "log/slog"

// A hidden is a secret that cannot be printed by mistake; nil holds the zero value. It is a function because that is the one kind of
// value that fmt never looks into: methods are not asked for unexported fields, and pointers are followed for an unfitting verb.
type hidden[T any] func() T

func hide[T any](secret T) hidden[T] { return func() T { return secret } }

func (h hidden[T]) reveal() (secret T) {
	if h != nil {
		secret = h()
	}
	return secret
}

func (h hidden[T]) String() string       { return "redacted" }
func (h hidden[T]) GoString() string     { return "redacted" }
func (h hidden[T]) LogValue() slog.Value { return slog.StringValue("redacted") }
