"""Data classes shared by several folders: model inputs, targets, tubes, span scores."""
