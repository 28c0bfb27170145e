"""What runs products or programs: golden models, simulators, boards."""
