"""Backbones whose features fill the store.

Appearance is ResNet, motion is SlowFast or Video Swin, text is RoBERTa. All are frozen.
"""
