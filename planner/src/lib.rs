//! The planner of sstep: from a tape, a machine and a budget to a verified plan
