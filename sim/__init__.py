"""Golden models, benches and simulators."""
