# Not run against AWS. A machine of an image with the package, which asks AWS for its tokens.

terraform {
  required_providers {
    aws = {
      source = "hashicorp/aws"
    }
  }
}

variable "bundle_dir" {
  description = "What istioctl x workload entry configure made; its istio-token is not used."
  type        = string
}

variable "image" {
  description = "AMI with the package in it, its unit enabled."
  type        = string
}

variable "subnet" {
  type = string
}

variable "instance_profile" {
  description = "Its role may call sts:GetWebIdentityToken."
  type        = string
}

module "wingman" {
  source       = "../.."
  bundle_dir   = var.bundle_dir
  token_source = "aws"
}

resource "aws_instance" "forum" {
  ami                         = var.image
  instance_type               = "t3.small"
  subnet_id                   = var.subnet
  iam_instance_profile        = var.instance_profile
  user_data_base64            = module.wingman.user_data_gzip_base64
  user_data_replace_on_change = true

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  tags = {
    Name = "forum"
  }
}
