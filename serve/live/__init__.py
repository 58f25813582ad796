"""What a server shows of itself while it works: one picture for the page, gRPC and the terminal."""
