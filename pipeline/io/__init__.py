"""Files: atomic writes, JSON lines, strict JSON, XML of CVAT."""
