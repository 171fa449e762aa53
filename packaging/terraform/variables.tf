variable "bundle_dir" {
  description = "The folder that `istioctl x workload entry configure` made. This or bundle."
  type        = string
  default     = null

  validation {
    condition     = (var.bundle_dir == null) != (nonsensitive(var.bundle) == null)
    error_message = "Expected one of bundle_dir and bundle."
  }
  validation {
    condition     = var.bundle_dir == null ? true : alltrue([for name in ["cluster.env", "mesh.yaml", "hosts", "root-cert.pem"] : try(length(file("${var.bundle_dir}/${name}")) > 0, false)])
    error_message = "bundle_dir: expected cluster.env, mesh.yaml, hosts and root-cert.pem in the folder, and text in each."
  }
  validation {
    condition     = var.bundle_dir == null || var.token_source != null ? true : var.settings != null && !fileexists("${var.bundle_dir}/istio-token") || try(length(file("${var.bundle_dir}/istio-token")) > 0, false)
    error_message = "bundle_dir: expected istio-token with text in the folder, or token_source, or settings that name where tokens come from and no such file."
  }
}

variable "bundle" {
  description = "istioctl's files as text. This or bundle_dir. istio_token may be left out with token_source, or with settings that name where tokens come from."
  type = object({
    cluster_env = string
    mesh        = string
    hosts       = string
    root_cert   = string
    istio_token = optional(string)
  })
  default   = null
  sensitive = true

  validation {
    condition     = nonsensitive(var.bundle) == null ? true : alltrue([for key, text in nonsensitive(var.bundle) : length(text) > 0 if key != "istio_token"])
    error_message = "bundle: expected text in cluster_env, mesh, hosts and root_cert, found an empty one."
  }
  validation {
    condition     = nonsensitive(var.bundle) == null || var.token_source != null ? true : var.settings != null && try(nonsensitive(var.bundle).istio_token, null) == null || try(length(nonsensitive(var.bundle).istio_token) > 0, false)
    error_message = "bundle: expected istio_token with text, or token_source, or settings that name where tokens come from and no istio_token."
  }
}

variable "package_source" {
  description = "Where an image without the packages gets them: {type = \"apt\" or \"yum\", url, key (text of the repository's public key), suite (apt's, stable)} or {type = \"url\", packages = [{url of a .deb or .rpm, sha256}, …]}: wingman's, and wingman-envoy's. null: they are in the image."
  type = object({
    type     = string
    url      = optional(string)
    key      = optional(string)
    suite    = optional(string, "stable")
    packages = optional(list(object({ url = string, sha256 = string })), [])
  })
  default = null

  validation {
    condition     = var.package_source == null ? true : contains(["apt", "yum", "url"], var.package_source.type)
    error_message = "package_source.type: expected apt, yum or url."
  }
  validation {
    condition     = var.package_source == null ? true : (var.package_source.type == "url") == (length(var.package_source.packages) > 0) && (var.package_source.type == "url") == (var.package_source.url == null)
    error_message = "package_source: expected packages with url alone, and one url with apt or yum."
  }
  validation {
    condition     = var.package_source == null ? true : alltrue([for url in concat(var.package_source.packages[*].url, var.package_source.url[*]) : can(regex("^https?://[-A-Za-z0-9._~:/?#@!&+,;=%]+$", url))])
    error_message = "package_source: expected URLs with http or https."
  }
  validation {
    condition     = var.package_source == null ? true : var.package_source.type == "url" ? var.package_source.key == null : can(regex("(?m:^-----BEGIN PGP PUBLIC KEY BLOCK-----$)", var.package_source.key)) && can(regex("^[\t\n -~]*$", var.package_source.key)) && !strcontains(var.package_source.key, "PRIVATE KEY")
    error_message = "package_source.key: expected the repository's public key as gpg --armor --export writes it, with apt or yum."
  }
  validation {
    condition     = var.package_source == null ? true : can(regex("^[-A-Za-z0-9._/]+$", var.package_source.suite))
    error_message = "package_source.suite: expected a name."
  }
  validation {
    condition     = var.package_source == null ? true : alltrue([for one in var.package_source.packages : can(regex("\\.(deb|rpm)$", one.url)) && can(regex("^[0-9a-f]{64}$", one.sha256))])
    error_message = "package_source.packages: expected the url of a .deb or .rpm, and its sha256 as 64 lower-case hexadecimal digits."
  }
  validation {
    condition     = var.package_source == null ? true : length(distinct([for one in var.package_source.packages : substr(one.url, -4, 4)])) <= 1
    error_message = "package_source.packages: expected files of one kind, all .deb or all .rpm."
  }
}

variable "settings" {
  description = "Text of /etc/wingman/wingman.yaml."
  type        = string
  default     = null

  validation {
    condition     = var.settings == null ? true : can(yamldecode(var.settings))
    error_message = "settings: expected YAML."
  }
}

variable "token_source" {
  description = "gce, aws or azure: the machine asks its cloud for tokens, and none is in the user-data. That is its whole wingman.yaml: what an image has there goes; keep it by settings that name identity.credentials."
  type        = string
  default     = null

  validation {
    condition     = var.token_source == null ? true : contains(["gce", "aws", "azure"], var.token_source)
    error_message = "token_source: expected gce, aws or azure."
  }
  validation {
    condition     = var.token_source == null || var.settings == null
    error_message = "Expected one of token_source and settings: name identity.credentials in the settings, and leave the token out of the bundle."
  }
}
