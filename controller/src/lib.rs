//! Turns MachineOSConfigs into builds, digests and registry cleanup.

pub mod api;
pub mod phase;
pub mod secrets;
