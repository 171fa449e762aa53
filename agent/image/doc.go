// Package image proves that a machine image holds no identity, and cleans it: `wingman image check`, `wingman image clean`.
//
//	root ─► places to look at (the agent's own, and those that settings in the image name) ─► files ─► judge: is it somebody's? ─► Report
//
// It looks at a machine that is being built or at the tree of a mounted image, and asks nobody on the network. Links are followed inside the root only.
// What a file is follows from its place and from what is in it (judge.go, pure); the walk is in tree.go. It has no goroutines, and Check writes nothing.
//
// What each thing that the agent writes is, and whether it tells machines apart, is the table of docs/images.md.
package image
