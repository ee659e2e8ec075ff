"""The published systems: registry, training configurations, presets, checkpoints, MDETR weights."""
