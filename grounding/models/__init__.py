"""One file per published system; each reads as its paper."""
