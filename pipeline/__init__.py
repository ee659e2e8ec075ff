"""Stage one: raw videos and annotations in, a sharded store of features out."""
