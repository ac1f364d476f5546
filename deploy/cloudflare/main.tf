# Cloudflare in front of the feeds: Clerk's importer passes untouched, everyone else is slowed, nothing is cached, and
# the origin answers nobody but this zone. Needs Terraform 1.5 or OpenTofu, and a token in CLOUDFLARE_API_TOKEN that may
# edit the zone's DNS, settings, rulesets, bot management and SSL.
#
# Cloudflare has one ruleset for each phase of a zone. Where the zone has rules of its own in a phase, import that ruleset
# and put these rules first, or Terraform replaces what is there.

terraform {
  required_version = ">= 1.5"
  required_providers {
    cloudflare = {
      source  = "cloudflare/cloudflare"
      version = "~> 5.8"
    }
  }
}

locals {
  feeds    = "http.host eq \"${var.hostname}\""
  importer = "ip.src in {${join(" ", var.importer_addresses)}}"
}

resource "cloudflare_dns_record" "feeds" {
  zone_id = var.zone_id
  name    = var.hostname
  type    = strcontains(var.origin_address, ":") ? "AAAA" : "A"
  content = var.origin_address
  proxied = true
  ttl     = 1
}

# Full (strict): the way from Cloudflare to the origin is TLS with a certificate that is checked. Of this host only.
resource "cloudflare_ruleset" "settings" {
  zone_id = var.zone_id
  name    = "clerk-feed settings"
  kind    = "zone"
  phase   = "http_config_settings"

  rules = [{
    ref         = "clerk_feed_settings"
    description = "Feeds: TLS checked up to the origin, answers passed on as they are"
    expression  = local.feeds
    action      = "set_config"
    action_parameters = {
      ssl                      = "strict"
      email_obfuscation        = false
      rocket_loader            = false
      hotlink_protection       = false
      automatic_https_rewrites = false
    }
  }]
}

# The importer is exempt from rate limits, bot checks and challenges: to Clerk each of them is a failed sync.
resource "cloudflare_ruleset" "firewall" {
  zone_id = var.zone_id
  name    = "clerk-feed importer"
  kind    = "zone"
  phase   = "http_request_firewall_custom"

  rules = [{
    ref         = "clerk_feed_importer"
    description = "Feeds: Clerk's importer passes"
    expression  = "${local.feeds} and ${local.importer}"
    action      = "skip"
    action_parameters = {
      ruleset  = "current"
      phases   = ["http_ratelimit", "http_request_firewall_managed", "http_request_sbfm"]
      products = ["bic", "hot", "rateLimit", "securityLevel", "uaBlock", "waf", "zoneLockdown"]
    }
    logging = {
      enabled = true
    }
  }]
}

# Bot Fight Mode, of the free plan, is for the whole zone and skips for nobody, so it has to be off.
resource "cloudflare_bot_management" "zone" {
  count      = var.turn_bot_fight_mode_off ? 1 : 0
  zone_id    = var.zone_id
  fight_mode = false
}

# Everyone else: a person who looks, a monitor, an attacker who tries tokens.
resource "cloudflare_ruleset" "rate_limit" {
  zone_id = var.zone_id
  name    = "clerk-feed rate limit"
  kind    = "zone"
  phase   = "http_ratelimit"

  rules = [{
    ref         = "clerk_feed_rate_limit"
    description = "Feeds: who is not the importer is slowed"
    expression  = "${local.feeds} and not ${local.importer}"
    action      = "block"
    ratelimit = {
      characteristics     = ["cf.colo.id", "ip.src"]
      period              = var.rate_limit.period_seconds
      requests_per_period = var.rate_limit.requests
      mitigation_timeout  = var.rate_limit.blocked_seconds
    }
  }]
}

# A cached feed is a stale one at best, and customers' addresses handed to anyone at worst.
resource "cloudflare_ruleset" "cache" {
  zone_id = var.zone_id
  name    = "clerk-feed cache"
  kind    = "zone"
  phase   = "http_request_cache_settings"

  rules = [{
    ref         = "clerk_feed_never_cached"
    description = "Feeds are never cached"
    expression  = local.feeds
    action      = "set_cache_settings"
    action_parameters = {
      cache = false
    }
  }]
}

# Authenticated origin pulls with a certificate of your own: Cloudflare's shared one only proves that somebody's zone
# asks, and anybody may have a zone. The origin checks it: client_ca in feed.toml, or ssl_client_certificate in nginx.
resource "cloudflare_authenticated_origin_pulls_certificate" "feeds" {
  zone_id     = var.zone_id
  certificate = file(var.origin_pull_certificate)
  private_key = file(var.origin_pull_key)

  lifecycle {
    create_before_destroy = true
  }
}

resource "cloudflare_authenticated_origin_pulls_settings" "feeds" {
  zone_id    = var.zone_id
  enabled    = true
  depends_on = [cloudflare_authenticated_origin_pulls_certificate.feeds]
}

# For the origin's firewall: nobody else needs to reach port 443.
data "cloudflare_ip_ranges" "edge" {}
