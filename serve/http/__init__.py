"""The HTTP door: OpenAI's interface beside gRPC, in the same event loop."""
