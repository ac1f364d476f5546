"""clerk-feed: serves a PostgreSQL catalog to Clerk.io's importer."""

__version__ = "0.1.0"
