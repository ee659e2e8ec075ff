"""File formats: atomic writes, JSON lines, strict JSON, and CVAT's XML."""
