//! The integration tests, one binary.

mod model;
mod python_reader;
mod saves;
mod tidy;
