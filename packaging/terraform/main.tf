# The same user-data as packaging/cloud-init/user-data.sh makes. The scripts are copies of those beside it, so that the module is whole wherever it is copied to.

locals {
  scripts = { for name in ["prepare", "package", "join"] : name => file("${path.module}/scripts/${name}.sh") }

  # Text by istioctl's names. What is secret in it is so again in the outputs.
  given = nonsensitive(var.bundle)
  files = {
    "cluster.env"   = local.given != null ? local.given.cluster_env : file("${var.bundle_dir}/cluster.env")
    "mesh.yaml"     = local.given != null ? local.given.mesh : file("${var.bundle_dir}/mesh.yaml")
    "hosts"         = local.given != null ? local.given.hosts : file("${var.bundle_dir}/hosts")
    "root-cert.pem" = local.given != null ? local.given.root_cert : file("${var.bundle_dir}/root-cert.pem")
  }
  token = (
    var.token_source != null ? null :
    local.given != null ? local.given.istio_token :
    fileexists("${var.bundle_dir}/istio-token") ? file("${var.bundle_dir}/istio-token") : null
  )

  settings = var.token_source != null ? "identity: {credentials: [${var.token_source}]}\n" : var.settings
  source   = var.package_source
  kind     = try(var.package_source.type, "baked")
  key_file = "/etc/pki/rpm-gpg/RPM-GPG-KEY-wingman"

  # In the order in which they are written. The token is the last: who waits for it finds the rest.
  names = concat(["cluster.env", "mesh.yaml", "hosts", "root-cert.pem"], local.token == null ? [] : ["istio-token"])
  places = {
    "cluster.env"   = "/var/lib/istio/envoy/cluster.env"
    "mesh.yaml"     = "/etc/istio/config/mesh"
    "hosts"         = "/var/lib/istio/envoy/hosts"
    "root-cert.pem" = "/etc/certs/root-cert.pem"
    "istio-token"   = "/run/secrets/tokens/istio-token"
  }
  write_files = concat(
    local.kind != "yum" ? [] : [{ path = local.key_file, owner = "root:root", permissions = "0644", encoding = "b64", content = base64encode(local.source.key) }],
    local.settings == null ? [] : [merge(
      { path = "/etc/wingman/wingman.yaml", owner = "root:root", permissions = "0644", encoding = "b64", content = base64encode(local.settings) },
      # After the package, whose own it replaces.
      { for key, value in { defer = true } : key => value if local.kind != "baked" },
    )],
    [for name in local.names : {
      path        = local.kind == "baked" ? local.places[name] : "/root/wingman-bundle/${name}"
      owner       = local.kind == "baked" && name == "istio-token" ? "istio-proxy:istio-proxy" : "root:root"
      permissions = local.kind != "baked" || name == "istio-token" ? "0600" : "0644"
      encoding    = "b64"
      content     = base64encode(name == "istio-token" ? local.token : local.files[name])
    }],
  )

  document = {
    bootcmd = [["cloud-init-per", "instance", "wingman-prepare", "sh", "-euc", local.scripts.prepare]]
    apt = local.kind != "apt" ? null : { sources = { wingman = {
      source = "deb [signed-by=$KEY_FILE] ${local.source.url} ${local.source.suite} main"
      key    = "${chomp(local.source.key)}\n"
    } } }
    yum_repos = local.kind != "yum" ? null : { wingman = {
      name = "Wingman", baseurl = local.source.url, enabled = true, gpgcheck = true, repo_gpgcheck = true, gpgkey = "file://${local.key_file}"
    } }
    packages    = contains(["apt", "yum"], local.kind) ? ["wingman"] : null
    write_files = local.write_files
    runcmd = concat(
      local.kind != "url" ? [] : [concat(["sh", "-euc", local.scripts.package, "wingman-package"], flatten([for one in local.source.packages : [one.url, one.sha256]]))],
      local.kind == "baked" ? [["systemctl", "enable", "--now", "wingman.service"]] : [["sh", "-euc", local.scripts.join, "wingman-join"]],
    )
  }

  user_data = join("\n", concat(
    ["#cloud-config"],
    local.token == null ? [] : ["# Holds a token of the mesh: keep it from everybody who may not be this machine."],
    [yamlencode({ for key, value in local.document : key => value if value != null })],
  ))
}
