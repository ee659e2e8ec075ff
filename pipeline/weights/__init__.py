"""Published weights: sources, strict loading, digests."""
