"""Parts that commands share: app, progress, options, tables."""
