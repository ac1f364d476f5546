output "edge_networks" {
  description = "Cloudflare's networks, the only ones that the origin's firewall needs to let in on port 443."
  value       = concat(data.cloudflare_ip_ranges.edge.ipv4_cidrs, data.cloudflare_ip_ranges.edge.ipv6_cidrs)
}

output "import_urls" {
  description = "What to enter in my.clerk.io, with the store's name in place of SHOP."
  value = [
    for feed in ["products", "categories", "orders", "customers", "pages"] :
    "https://${var.hostname}/SHOP/${feed}?limit={{limit}}&offset={{offset}}&modified_after={{modified_after}}"
  ]
}
