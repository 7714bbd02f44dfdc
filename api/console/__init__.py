"""The console: pages for operators, served by the API under /console. See docs/adr/0052-console.md.

`pages` is the table of them, `site` what they share, `actions` who may do what, `observer` what is known of
the platform without asking anew. Each page is a module with a router; `routes` joins them.
"""
