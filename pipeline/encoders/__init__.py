"""Frozen backbones that fill the store: ResNet (appearance), SlowFast and Video Swin (motion), RoBERTa (text)."""
