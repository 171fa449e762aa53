# Images with Wingman installed, its unit enabled, and nobody's identity inside: docs/automation.md, docs/images.md.
#
#   packer build -only=qemu.debian -var 'packages=["/srv/mesh/wingman_1.2.3-1_amd64.deb"]' -var ssh_private_key_file=… -var seed=… .
#
# in this folder: the scripts are looked for in the working directory.
#
# Machines that are made of it join by themselves once they have istioctl's files (packaging/cloud-init writes them).

variable "packages" {
  type        = list(string)
  description = "The .deb or .rpm files to install: the agent's, and wingman-envoy's where traffic is to be captured."
}

variable "settings" {
  type        = string
  default     = ""
  description = "Content of /etc/wingman/wingman.yaml, the same for all machines. Empty leaves the package's."
}

variable "ssh_username" {
  type    = string
  default = "root"
}

variable "ssh_private_key_file" {
  type    = string
  default = ""
}

variable "machine" {
  type        = string
  default     = "127.0.0.1"
  description = "null.machine: the address of a machine that somebody else makes the image of."
}

variable "region" {
  type    = string
  default = "eu-central-1"
}

variable "ami_name" {
  type    = string
  default = "wingman-debian-12"
}

variable "disk" {
  type        = string
  default     = "https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2"
  description = "qemu.debian: the disk to begin with; disk_checksum is its checksum."
}

variable "disk_checksum" {
  type    = string
  default = "file:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS"
}

variable "seed" {
  type        = string
  default     = "."
  description = "qemu.debian: a folder with meta-data and user-data for the build alone, which let ssh_username in by ssh_private_key_file."
}

# A disk for any hypervisor.
source "qemu" "debian" {
  iso_url              = var.disk
  iso_checksum         = var.disk_checksum
  disk_image           = true
  format               = "qcow2"
  headless             = true
  http_directory       = var.seed
  qemuargs             = [["-smbios", "type=1,serial=ds=nocloud-net;s=http://{{ .HTTPIP }}:{{ .HTTPPort }}/"]]
  ssh_username         = var.ssh_username
  ssh_private_key_file = var.ssh_private_key_file
  shutdown_command     = "sudo systemctl poweroff"
  output_directory     = "output-wingman"
  vm_name              = "wingman-debian-12.qcow2"
}

# A container that runs systemd, where that is wanted.
source "docker" "debian" {
  image  = "debian:bookworm"
  commit = true
}

source "amazon-ebs" "debian" {
  region        = var.region
  instance_type = "t3.small"
  ami_name      = var.ami_name
  ssh_username  = "admin"
  source_ami_filter {
    filters = {
      name                = "debian-12-amd64-*"
      virtualization-type = "hvm"
    }
    owners      = ["136693071363"]
    most_recent = true
  }
}

# No builder of Packer's: a machine that is there already.
source "null" "machine" {
  ssh_host             = var.machine
  ssh_username         = var.ssh_username
  ssh_private_key_file = var.ssh_private_key_file
}

build {
  sources = ["source.qemu.debian", "source.docker.debian", "source.amazon-ebs.debian", "source.null.machine"]

  provisioner "shell" {
    inline = ["rm -rf /tmp/wingman-packages", "mkdir /tmp/wingman-packages"] # a build that broke off may have left its own
  }

  provisioner "file" {
    sources     = var.packages
    destination = "/tmp/wingman-packages/"
  }

  provisioner "shell" {
    script           = "scripts/install.sh"
    environment_vars = ["WINGMAN_SETTINGS=${var.settings}"]
    execute_command  = "if [ \"$(id -u)\" = 0 ]; then {{ .Vars }} sh {{ .Path }}; else sudo env {{ .Vars }} sh {{ .Path }}; fi"
  }

  # The last of all: it proves that the image holds nothing of one machine, and fails the build otherwise.
  provisioner "shell" {
    script          = "scripts/seal.sh"
    execute_command = "if [ \"$(id -u)\" = 0 ]; then {{ .Vars }} sh {{ .Path }}; else sudo env {{ .Vars }} sh {{ .Path }}; fi"
  }
}
