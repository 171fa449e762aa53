# Not run against Azure. A machine of an image with the package, told all by its user-data: istioctl's token too, which lasts for the first boot.

terraform {
  required_providers {
    azurerm = {
      source = "hashicorp/azurerm"
    }
  }
}

variable "bundle_dir" {
  description = "What istioctl x workload entry configure --tokenDuration 900 made, just now."
  type        = string
}

variable "image" {
  description = "Id of an image with the package in it, its unit enabled."
  type        = string
}

variable "location" {
  type = string
}

variable "resource_group" {
  type = string
}

variable "network_interface" {
  type = string
}

variable "ssh_key" {
  type = string
}

module "wingman" {
  source     = "../.."
  bundle_dir = var.bundle_dir
}

resource "azurerm_linux_virtual_machine" "forum" {
  name                  = "forum"
  location              = var.location
  resource_group_name   = var.resource_group
  size                  = "Standard_B1ms"
  admin_username        = "operator"
  network_interface_ids = [var.network_interface]
  source_image_id       = var.image
  custom_data           = module.wingman.user_data_base64

  admin_ssh_key {
    username   = "operator"
    public_key = var.ssh_key
  }

  os_disk {
    caching              = "ReadWrite"
    storage_account_type = "Standard_LRS"
  }

  lifecycle {
    # A new token is no reason for a new machine.
    ignore_changes = [custom_data]
  }
}
