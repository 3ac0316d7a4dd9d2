//! The integration tests, one binary.

mod faults;
mod forge;
mod golden;
mod model;
mod regressions;
mod saves;
#[cfg(shuttle)]
mod shuttle;
mod tidy;
