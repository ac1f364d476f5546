variable "zone_id" {
  description = "The zone the feeds' host belongs to; on the overview page of the zone."
  type        = string
}

variable "hostname" {
  description = "The host of the feeds, for example feeds.your-shop.example."
  type        = string
}

variable "origin_address" {
  description = "Address of the machine that clerk-feed, or the proxy in front of it, listens on."
  type        = string
}

variable "importer_addresses" {
  description = "Addresses of Clerk's importer. Clerk publishes 52.57.0.11, \"subject to change\": ask when a sync gets 403."
  type        = list(string)
  default     = ["52.57.0.11"]

  validation {
    condition     = length(var.importer_addresses) > 0
    error_message = "Without an address the importer would be limited and challenged like everyone else."
  }
}

variable "rate_limit" {
  description = "How often an address that is not the importer may ask. The free plan allows a period of 10 seconds only."
  type = object({
    period_seconds  = number
    requests        = number
    blocked_seconds = number
  })
  default = {
    period_seconds  = 10
    requests        = 20
    blocked_seconds = 10
  }
}

variable "turn_bot_fight_mode_off" {
  description = "Bot Fight Mode of the free plan can't be skipped by a rule and challenges the importer. It is a setting of the whole zone."
  type        = bool
  default     = true
}

variable "origin_pull_certificate" {
  description = "Path of the client certificate that Cloudflare shows to the origin, in PEM."
  type        = string
}

variable "origin_pull_key" {
  description = "Path of its key, in PEM. It becomes part of the state: keep that as secret."
  type        = string
}
