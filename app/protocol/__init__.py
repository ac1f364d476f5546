"""What Clerk says: feeds, requests, bytes on the wire, and every refusal. Pure, without I/O."""
