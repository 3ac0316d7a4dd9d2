//! The integration tests, one binary.

mod model;
mod saves;
#[cfg(shuttle)]
mod shuttle;
mod tidy;
