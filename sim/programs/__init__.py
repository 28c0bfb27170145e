"""Random programs: on the simulated accelerator and on the golden machine."""
