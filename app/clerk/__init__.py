"""Calls to Clerk, and as Clerk."""
