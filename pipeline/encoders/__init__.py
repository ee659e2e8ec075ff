"""Frozen backbones that fill the store: ResNet (appearance), SlowFast (motion), RoBERTa (text)."""
