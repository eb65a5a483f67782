"""Many pictures and many users: generation of whole lists, an HTTP service, the demo's page."""
