# What the module makes and what it refuses; run by `tofu test`.

variables {
  bundle = {
    cluster_env = "SERVICE_ACCOUNT='forum-sa'\n"
    mesh        = "defaultConfig: {}\n"
    hosts       = "10.0.0.1 istiod.istio-system.svc\n"
    root_cert   = "a certificate\n"
    istio_token = "a.b.c"
  }
}

run "a_bundle_is_enough" {
  command = plan

  assert {
    condition     = output.holds_token && startswith(output.user_data, "#cloud-config\n# Holds a token")
    error_message = "user-data with a token does not say so"
  }
  assert {
    condition     = base64decode(output.user_data_base64) == output.user_data && base64gunzip(output.user_data_gzip_base64) == output.user_data && output.gcp_metadata["user-data"] == output.user_data
    error_message = "the outputs are not of one text"
  }
}

run "a_cloud_s_token_keeps_istioctl_s_out" {
  command = plan
  variables {
    token_source = "azure"
  }
  assert {
    condition     = !output.holds_token && !strcontains(output.user_data, "istio-token") && !strcontains(output.user_data, base64encode("a.b.c"))
    error_message = "the token is in the user-data"
  }
}

run "neither_folder_nor_bundle" {
  command = plan
  variables {
    bundle = null
  }
  expect_failures = [var.bundle_dir]
}

run "both_folder_and_bundle" {
  command = plan
  variables {
    bundle_dir   = "tests/bundle"
    token_source = "gce"
  }
  expect_failures = [var.bundle_dir]
}

run "a_folder_without_the_files" {
  command = plan
  variables {
    bundle       = null
    bundle_dir   = "tests"
    token_source = "gce"
  }
  expect_failures = [var.bundle_dir]
}

run "a_folder_without_the_token" {
  command = plan
  variables {
    bundle     = null
    bundle_dir = "tests/bundle"
  }
  expect_failures = [var.bundle_dir]
}

run "a_folder_and_a_cloud" {
  command = plan
  variables {
    bundle       = null
    bundle_dir   = "tests/bundle"
    token_source = "gce"
  }
  assert {
    condition     = !output.holds_token
    error_message = "there is no token"
  }
}

run "an_empty_file" {
  command = plan
  variables {
    bundle = { cluster_env = "", mesh = "m", hosts = "h", root_cert = "r", istio_token = "a.b.c" }
  }
  expect_failures = [var.bundle]
}

run "no_token" {
  command = plan
  variables {
    bundle = { cluster_env = "c", mesh = "m", hosts = "h", root_cert = "r" }
  }
  expect_failures = [var.bundle]
}

run "an_unknown_cloud" {
  command = plan
  variables {
    token_source = "ibm"
  }
  expect_failures = [var.token_source]
}

run "settings_beside_a_cloud" {
  command = plan
  variables {
    token_source = "aws"
    settings     = "log: {level: debug}"
  }
  expect_failures = [var.token_source]
}

run "settings_that_are_no_yaml" {
  command = plan
  variables {
    settings = "log: {"
  }
  expect_failures = [var.settings]
}

run "a_package_of_no_kind" {
  command = plan
  variables {
    package_source = { type = "snap", url = "https://packages.example", key = "-----BEGIN PGP PUBLIC KEY BLOCK-----" }
  }
  expect_failures = [var.package_source]
}

run "a_repository_without_a_key" {
  command = plan
  variables {
    package_source = { type = "apt", url = "https://packages.example" }
  }
  expect_failures = [var.package_source]
}

run "a_repository_of_no_suite" {
  command = plan
  variables {
    package_source = { type = "apt", url = "https://packages.example", key = "-----BEGIN PGP PUBLIC KEY BLOCK-----", suite = "a b" }
  }
  expect_failures = [var.package_source]
}

run "a_package_without_a_checksum" {
  command = plan
  variables {
    package_source = { type = "url", packages = [{ url = "https://packages.example/wingman.deb", sha256 = "0a" }] }
  }
  expect_failures = [var.package_source]
}

run "a_url_that_would_be_another_line" {
  command = plan
  variables {
    package_source = { type = "url", packages = [{ url = "https://packages.example/\n.deb", sha256 = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a" }] }
  }
  expect_failures = [var.package_source]
}
