output "user_data" {
  description = "User-data for cloud-init, plain."
  value       = local.user_data
  sensitive   = true
}

output "user_data_base64" {
  description = "The same in base64: custom_data of Azure, user_data_base64 of AWS."
  value       = base64encode(local.user_data)
  sensitive   = true
}

output "user_data_gzip_base64" {
  description = "The same, compressed, in base64: for AWS, which takes 16384 bytes before base64."
  value       = base64gzip(local.user_data)
  sensitive   = true
}

output "gcp_metadata" {
  description = "Metadata of a GCP instance: user-data, which images with cloud-init read."
  value       = { "user-data" = local.user_data }
  sensitive   = true
}

output "holds_token" {
  description = "Whether the user-data holds istioctl's token: then everybody who may read it, or the state of Terraform, can be this workload for as long as the token lasts."
  value       = local.token != null
}
