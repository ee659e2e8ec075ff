"""The commands, one thin file each: parse, build a config, call one function, turn errors into exit codes."""
