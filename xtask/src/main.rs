//! Build, run, test and measure Kelp.

fn main() {}
