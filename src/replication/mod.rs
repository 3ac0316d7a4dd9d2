//! Replicas: what two nodes tell each other, and what follows from it.
//!
//! Deciding is pure ([`catch_up`], [`line`]) and knows neither threads, files, sockets nor clocks; who moves bytes stands
//! upstairs and in [`link`].

pub(crate) mod auth;
pub(crate) mod catch_up;
pub(crate) mod framing;
pub(crate) mod line;
pub(crate) mod link;
pub(crate) mod needs;
