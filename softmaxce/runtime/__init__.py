"""The process and the machine: device, threads, memory, random state, signals."""
