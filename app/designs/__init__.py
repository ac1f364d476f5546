"""Designs: the markup that shows Clerk's results in the shop. Converted, checked and shown with the feed's own items.

Nothing else imports this room; it needs the extra `designs`.
"""
