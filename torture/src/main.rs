//! Long correctness campaigns.
fn main() {}
