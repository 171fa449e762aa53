// Package repo holds the rules of this repository as tests: who may import whom, and that every package explains itself.
package repo
