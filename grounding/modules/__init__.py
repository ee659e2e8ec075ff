"""Network blocks that the models share: attention, positions, feed-forward, proposal map."""
