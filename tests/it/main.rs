//! The integration tests, one binary.
#![expect(clippy::cast_possible_truncation, reason = "tests make small numbers of random ones")]

mod backup;
mod expiry;
mod faults;
mod forge;
mod golden;
mod install;
mod keeper;
mod lifetimes;
mod log;
mod memory;
mod midway;
mod model;
mod python_reader;
mod regressions;
mod replicas;
mod replicas_directed;
mod salvage;
mod saves;
mod saves_by_itself;
mod serving;
mod sessions;
#[cfg(shuttle)]
mod shuttle;
mod stamps;
mod stats;
mod subscriptions;
mod threads;
mod tidy;
mod transactions;
mod typed;
