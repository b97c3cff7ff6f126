"""How a step runs: eagerly, compiled, or captured as CUDA graphs."""
