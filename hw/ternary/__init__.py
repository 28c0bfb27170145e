"""The ternary engine: trit decoders, lanes, accumulators, gearbox."""
