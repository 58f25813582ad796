"""What a server tells of itself: records of requests, and who listens to them."""
