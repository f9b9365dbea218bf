//! Turns MachineOSConfigs into builds, digests and registry cleanup.

pub mod admin;
pub mod api;
pub mod backoff;
pub mod events;
#[cfg(test)]
mod fixtures;
pub mod inputs;
pub mod job;
pub mod lease;
pub mod metrics;
pub mod phase;
pub mod render;
pub mod secrets;
pub mod settings;
pub mod telemetry;
pub mod yaml;
