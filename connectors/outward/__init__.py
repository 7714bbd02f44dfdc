"""What leaves the platform: webhooks and mails, from the outbox that the sink writes (see docs/adr/0061)."""
