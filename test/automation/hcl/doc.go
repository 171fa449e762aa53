// Package hcl tests what is written in HashiCorp's language: packaging/terraform, by OpenTofu itself and by HashiCorp's parsers.
//
// It is a module of its own because of what OpenTofu brings along. Its program is built from that module once, which takes minutes, and kept in the folder
// of package vm's images (WINGMAN_CACHE, default ~/.cache/wingman). No provider is needed, hence no registry: what needs one is parsed, not run.
package hcl
