"""Plain data that crosses folders: model inputs, targets, tubes, span scores."""
