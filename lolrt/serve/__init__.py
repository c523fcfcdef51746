"""`lolrt serve`: live streams over HTTP and WebSocket. docs/serve.md describes the protocol, docs/threat-model.md says who may do what."""
