// Package automation tests what brings Wingman to machines by the dozen: the folders packaging/cloud-init, packaging/terraform, packaging/ansible,
// packaging/packer and packaging/repository, each by the tool that it is for, against machines of package vm and the control plane of package controlplane.
//
// It holds tests alone. They need what test/vm needs, and are skipped without WINGMAN_VM=1; `make test-automation` runs them and lets nothing skip.
// What has to parse or evaluate Terraform's and Packer's language is in the module below it, hcl, so that the product's modules stay few.
package automation
