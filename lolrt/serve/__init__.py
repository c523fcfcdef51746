"""`lolrt serve`: live streams over HTTP and WebSocket. What goes over the wire is in docs/serve.md, who may do what in
docs/threat-model.md."""
