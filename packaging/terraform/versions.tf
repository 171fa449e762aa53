terraform {
  # Validations that look at several variables. No provider: text in, text out.
  required_version = ">= 1.9"
}
