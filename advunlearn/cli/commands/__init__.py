"""The commands, one module each, with the function `run`. Results go to files and stdout, progress to stderr."""
