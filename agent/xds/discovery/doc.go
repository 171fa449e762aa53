// Package discovery is what the agent itself says and reads of Envoy's discovery protocol (xDS, SDS): the fields that it uses of requests, answers
// and the node. Every other field passes through unread.
//
// Envoy's own types, go-control-plane's, bring validation rules, annotations and every message of their files along: a megabyte of binary. That
// ours are theirs on the wire is a test.
package discovery

//go:generate protoc --go_out=../../.. --go_opt=module=wingman -I ../../.. agent/xds/discovery/discovery.proto
