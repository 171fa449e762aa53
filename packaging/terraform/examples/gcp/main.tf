# Not run against GCP. A stock Debian that gets the package from an apt repository, and asks GCE for its tokens.

terraform {
  required_providers {
    google = {
      source = "hashicorp/google"
    }
  }
}

variable "bundle_dir" {
  description = "What istioctl x workload entry configure made; its istio-token is not used."
  type        = string
}

variable "zone" {
  type = string
}

variable "subnetwork" {
  type = string
}

variable "service_account" {
  description = "E-mail of the account that the machine is."
  type        = string
}

variable "repository" {
  description = "URL of the apt repository."
  type        = string
}

variable "repository_key" {
  description = "File with its public key."
  type        = string
}

variable "image" {
  description = "With cloud-init: GCP's own Debian images have none."
  type        = string
}

module "wingman" {
  source       = "../.."
  bundle_dir   = var.bundle_dir
  token_source = "gce"

  package_source = {
    type = "apt"
    url  = var.repository
    key  = file(var.repository_key)
  }
}

resource "google_compute_instance" "forum" {
  name         = "forum"
  machine_type = "e2-small"
  zone         = var.zone
  metadata     = module.wingman.gcp_metadata

  boot_disk {
    initialize_params {
      image = var.image
    }
  }

  network_interface {
    subnetwork = var.subnetwork
  }

  service_account {
    email  = var.service_account
    scopes = ["cloud-platform"]
  }
}
