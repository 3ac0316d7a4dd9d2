//! The integration tests, one binary.

mod model;
mod saves;
mod tidy;
