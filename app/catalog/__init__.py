"""Where items come from: the shop's PostgreSQL, and our own schema in it."""
