//! The integration tests, one binary.

mod lifetimes;
mod memory;
mod model;
mod saves;
#[cfg(shuttle)]
mod shuttle;
mod stamps;
mod threads;
mod tidy;
